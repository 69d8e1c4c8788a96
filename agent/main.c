/* SPDX-License-Identifier: Apache-2.0 */
/* keyholdd: what the command line says. Started by itself, its name says which role it has. */
#include "boot.h"
#include "descriptors.h"
#include "front.h"
#include "keeper.h"
#include "kektoken.h"
#include "log.h"
#include "secret.h"
#include "supervisor.h"
#include "token.h"
#include "turns.h"
#include <getopt.h>
#include <keyhold/keystore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONFIG "/etc/keyhold/keyhold.conf"
#define EXIT_USAGE 2

static const char usage[] =
    "usage: keyholdd [--config FILE] [--check] [--delay-ms N] [--foreground] [--version] [--help]\n"
    "  --config FILE  configuration (default " DEFAULT_CONFIG ")\n"
    "  --check        check the configuration, the tokens, users, store and kek_file, say what is wrong, and exit\n"
    "  --delay-ms N   hold each reply to a private-key operation back for N ms (0 to 60000)\n"
    "  --foreground   stay in the foreground: always so\n";

static int bad_usage(const char *what)
{
    fprintf(stderr, "keyholdd: %s\n%s", what, usage);
    return EXIT_USAGE;
}

static bool parse_delay(const char *text, long *delay_ms)
{
    char *end = NULL;

    *delay_ms = strtol(text, &end, 10);
    return end != text && *end == '\0' && *delay_ms >= 0 && *delay_ms <= 60000;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"check", no_argument, NULL, 't'},
                                            {"delay-ms", required_argument, NULL, 'd'},
                                            {"version", no_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"foreground", no_argument, NULL, 'f'},
                                            {NULL, 0, NULL, 0}};
    kh_options chosen = {.config_path = DEFAULT_CONFIG, .delay_ms = -1};
    int option = 0;

    kh_descriptors_standard();
    kh_secure_openssl(); /* every role parses private keys */
    if (argc == 1 && strcmp(argv[0], KH_ROLE_FRONT) == 0) {
        kh_secret_process();
        kh_turns_short();
        kh_log_init("front", KH_LOG_INFO, false);
        return kh_front_main();
    }
    if (argc == 1 && strcmp(argv[0], KH_ROLE_KEEPER) == 0) {
        kh_secret_process();
        kh_turns_short();
        kh_log_init("keeper", KH_LOG_INFO, false);
        return kh_keeper_main();
    }
    if (argc == 1 && strcmp(argv[0], KH_ROLE_KEK) == 0) {
        kh_secret_process();
        kh_log_init("kek", KH_LOG_INFO, false);
        return kh_kek_main();
    }
    if (argc == 1 && strncmp(argv[0], KH_ROLE_TOKEN, strlen(KH_ROLE_TOKEN)) == 0) {
        kh_secret_process();
        kh_turns_short();
        kh_log_init("token", KH_LOG_INFO, false);
        return kh_token_main();
    }
    while ((option = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            chosen.config_path = optarg;
            break;
        case 't':
            chosen.check = true;
            break;
        case 'd':
            if (!parse_delay(optarg, &chosen.delay_ms)) {
                return bad_usage("--delay-ms takes a number of milliseconds, 0 to 60000");
            }
            break;
        case 'f': /* it never goes to the background; accepted for those who say so */
            break;
        case 'v':
            printf("keyholdd %s\n", KH_VERSION);
            return 0;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            return bad_usage("unknown option");
        }
    }
    return optind < argc ? bad_usage("there are no arguments") : kh_supervise(&chosen);
}
