/* SPDX-License-Identifier: Apache-2.0 */
/* keyhold-bench: the benchmark harness. This file only finds the subcommand. */
#include "bench.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"load", kh_bench_load, "full TLS handshakes from many clients against a server"},
    {"op", kh_bench_op, "operations through the agent's socket, beside bare OpenSSL ones, or beside those over TCP"},
    {"flood", kh_bench_flood, "a caller as it should not be, to see what others notice of it"},
    {"gate", kh_bench_gate, "the product's figures against their bounds"},
    {"scan", kh_bench_scan, "looks for a private key's bytes in processes and files"},
#ifdef KH_BENCH_KERNELS
    {"kernels", kh_bench_kernels, "the batch kernels beside OpenSSL"},
#endif
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void print_usage(FILE *out)
{
    size_t i;

    fprintf(out, "usage: keyhold-bench COMMAND [options]     (COMMAND --help says more)\n");
    for (i = 0; i < COMMAND_COUNT; i++) {
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].what);
    }
}

int main(int argc, char **argv)
{
    size_t i;

    if (argc >= 2) {
        for (i = 0; i < COMMAND_COUNT; i++) {
            if (strcmp(argv[1], commands[i].name) == 0) {
                return commands[i].run(argc - 1, argv + 1);
            }
        }
        if (strcmp(argv[1], "--help") == 0) {
            print_usage(stdout);
            return KH_EXIT_OK;
        }
        if (strcmp(argv[1], "--version") == 0) {
            puts("keyhold-bench " KH_VERSION);
            return KH_EXIT_OK;
        }
        fprintf(stderr, "keyhold-bench: no command \"%s\"\n", argv[1]);
    }
    print_usage(stderr);
    return KH_EXIT_USAGE;
}
