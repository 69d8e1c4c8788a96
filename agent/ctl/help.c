/* SPDX-License-Identifier: Apache-2.0 */
/* help, version and the shell completion: all of them are read off the tables that the command line is parsed
 * with. */
#include "ctl.h"

#include <openssl/crypto.h>
#include <string.h>

static void print_option(const ctl_option *option)
{
    char left[64];

    if (option->value == NULL) {
        (void)snprintf(left, sizeof(left), "--%s", option->name);
    } else if (option->value[0] == '[') {
        (void)snprintf(left, sizeof(left), "--%s[=%.*s]", option->name, (int)strcspn(option->value + 1, "]"),
                       option->value + 1);
    } else {
        (void)snprintf(left, sizeof(left), "--%s %s", option->name, option->value);
    }
    (void)printf("  %-26s %s\n", left, option->help);
}

static void print_name(const ctl_command *command)
{
    (void)printf("%s%s%s", command->group != NULL ? command->group : "", command->group != NULL ? " " : "",
                 command->name);
}

static void print_command(const ctl_command *command)
{
    (void)printf("usage: keyholdctl [OPTION…] ");
    print_name(command);
    (void)printf("%s%s\n\n%s\n", command->operands[0] != '\0' ? " " : "", command->operands,
                 command->summary);
    if (command->options != NULL) {
        (void)printf("\nOptions:\n");
        for (const ctl_option *option = command->options; option->name != NULL; option++) {
            print_option(option);
        }
    }
    (void)printf("\nThe options of every command are in keyholdctl help.\n");
}

static void print_all(const ctl_command *commands)
{
    char left[96];

    (void)printf("usage: keyholdctl [OPTION…] COMMAND\n\nCommands:\n");
    for (const ctl_command *command = commands; command->name != NULL; command++) {
        (void)snprintf(left, sizeof(left), "%s%s%s %s", command->group != NULL ? command->group : "",
                       command->group != NULL ? " " : "", command->name, command->operands);
        (void)printf("  %-26s %s\n", left, command->summary);
    }
    (void)printf("\nOptions of every command:\n");
    for (const ctl_option *option = ctl_global_options; option->name != NULL; option++) {
        print_option(option);
    }
    (void)printf("\nExit status: 0 done, 1 failed or missing, 2 wrong usage, 3 the agent cannot be reached.\n"
                 "keyholdctl help COMMAND says more of one; keyholdctl(1) says all.\n");
}

/* "help", "help key", "help key create"; also what --help was given with. */
kh_result ctl_cmd_help(ctl_run *ctl)
{
    const char *first = ctl->args.operand_count > 0 ? ctl->args.operands[0] : NULL;
    const char *second = ctl->args.operand_count > 1 ? ctl->args.operands[1] : NULL;
    unsigned shown = 0;

    if (first == NULL) {
        print_all(ctl->commands);
        return KH_OK;
    }
    for (const ctl_command *command = ctl->commands; command->name != NULL; command++) {
        bool in_group = command->group != NULL && strcmp(command->group, first) == 0;

        if ((in_group && (second == NULL || strcmp(command->name, second) == 0)) ||
            (command->group == NULL && second == NULL && strcmp(command->name, first) == 0)) {
            (void)fputs(shown++ > 0 ? "\n" : "", stdout);
            print_command(command);
        }
    }
    if (shown == 0) {
        return ctl_fail_usage(&ctl->error, "there is no command \"%s%s%s\"; see keyholdctl help", first,
                              second != NULL ? " " : "", second != NULL ? second : "");
    }
    return KH_OK;
}

kh_result ctl_cmd_version(ctl_run *ctl)
{
    (void)ctl;
    (void)printf("keyholdctl %s (%s)\n", KH_VERSION, OpenSSL_version(OPENSSL_VERSION));
    return KH_OK;
}

/* ---- Completion ---- */

static void print_option_words(const ctl_option *option)
{
    for (; option != NULL && option->name != NULL; option++) {
        (void)printf(" --%s", option->name);
    }
}

/* "key create": its options, what its values are, and whether it wants the name of a key or a file. */
static void print_case(const ctl_command *command)
{
    (void)printf("        \"");
    print_name(command);
    (void)printf("\") options=\"");
    print_option_words(command->options);
    (void)printf("\" operands=\"%s\" ;;\n", command->operands);
}

kh_result ctl_cmd_completion(ctl_run *ctl)
{
    const char *last = "";

    if (strcmp(ctl->args.operands[0], "bash") != 0) {
        return ctl_fail_usage(&ctl->error, "there is no completion for \"%s\"; there is one for bash",
                              ctl->args.operands[0]);
    }
    (void)printf(
        "# Completion of keyholdctl for bash; made by keyholdctl completion bash.\n"
        "_keyholdctl() {\n"
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} word skip='' count=0\n"
        "    local command='' group='' options='' operands='' globals=()\n"
        "    COMPREPLY=()\n"
        "    # --option=value comes in three words\n"
        "    if [ \"$cur\" = = ]; then cur=''; elif [ \"$prev\" = = ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
        "    for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
        "        [ \"$word\" = = ] && continue\n"
        "        if [ -n \"$skip\" ]; then [ \"$skip\" = keep ] && globals+=(\"$word\"); skip=''; continue; "
        "fi\n"
        "        case $word in\n"
        "        --config | --socket | --token | --agent | --agent-ca | --agent-cert | --agent-key | --agent-name)\n"
        "            globals+=(\"$word\") skip=keep ;;\n"
        "        --out | --type | --usage | --cert | --pin | --passphrase-file | --new-passphrase-file | --passphrase-env | "
        "--subject | --san | --days | \\\n"
        "            --count | --dir | --user-front | --user-keeper | --prefix | --timeout | --store | "
        "--kek-file | \\\n"
        "            --keys) skip=drop ;;\n"
        "        -*) ;;\n"
        "        *) if [ -n \"$command\" ]; then count=$((count + 1))\n"
        "           elif [ -n \"$group\" ]; then command=\"$group $word\"\n"
        "           else case $word in ");
    for (const ctl_command *command = ctl->commands; command->name != NULL; command++) {
        if (command->group != NULL && strcmp(command->group, last) != 0) {
            (void)printf("%s%s", last[0] != '\0' ? " | " : "", command->group);
            last = command->group;
        }
    }
    (void)printf(") group=$word ;; *) command=$word ;; esac; fi ;;\n"
                 "        esac\n"
                 "    done\n"
                 "    case $command in\n");
    for (const ctl_command *command = ctl->commands; command->name != NULL; command++) {
        print_case(command);
    }
    (void)printf("    esac\n"
                 "    case $prev in\n"
                 "    --config | --token | --cert | --out | --pin | --passphrase-file | --new-passphrase-file | --store | --kek-file | --agent-ca | "
                 "--agent-cert | --agent-key) COMPREPLY=($(compgen "
                 "-f -- \"$cur\")); return ;;\n"
                 "    --dir | --prefix) COMPREPLY=($(compgen -d -- \"$cur\")); return ;;\n"
                 "    --user-front | --user-keeper) COMPREPLY=($(compgen -u -- \"$cur\")); return ;;\n"
                 "    --type) COMPREPLY=($(compgen -W \"rsa2048 rsa3072 rsa4096 p256 p384 p521 ed25519\" -- "
                 "\"$cur\")); return ;;\n"
                 "    --usage) word=${cur%%\"${cur##*,}\"}; COMPREPLY=($(compgen -P \"$word\" -W \"");
#define KH_X(constant, bit, name) (void)printf(" %s", name);
    KH_USAGES(KH_X)
#undef KH_X
    (void)printf(
        "\" -- \"${cur##*,}\")); return ;;\n"
        "    --socket | --agent | --agent-name | --subject | --san | --days | --count | --timeout | --passphrase-env | "
        "--keys) return ;;\n"
        "    esac\n"
        "    case $cur in\n"
        "    -*) COMPREPLY=($(compgen -W \"$options");
    print_option_words(ctl_global_options);
    (void)printf("\" -- \"$cur\")); return ;;\n"
                 "    esac\n");
    (void)printf("    if [ -z \"$command$group\" ]; then\n        COMPREPLY=($(compgen -W \"");
    last = "";
    for (const ctl_command *command = ctl->commands; command->name != NULL; command++) {
        if (command->group == NULL || strcmp(command->group, last) != 0) {
            (void)printf(" %s", command->group != NULL ? command->group : command->name);
        }
        last = command->group != NULL ? command->group : "";
    }
    (void)printf("\" -- \"$cur\"))\n    elif [ -z \"$command\" ]; then\n        case $group in\n");
    for (const ctl_command *command = ctl->commands; command->name != NULL;) {
        const char *group = command->group;

        if (group == NULL) {
            command++;
            continue;
        }
        (void)printf("        %s) COMPREPLY=($(compgen -W \"", group);
        for (; command->name != NULL && command->group != NULL && strcmp(command->group, group) == 0;
             command++) {
            (void)printf(" %s", command->name);
        }
        (void)printf("\" -- \"$cur\")) ;;\n");
    }
    (void)printf(
        "        esac\n"
        "    else\n"
        "        case $count,$operands in\n"
        "        0,NAME | 0,NAME\\ * | 0,NAME\\[*)\n"
        "            case $command in key\\ create | key\\ import | token\\ create) return ;; esac\n"
        "            COMPREPLY=($(compgen -W \"$(keyholdctl \"${globals[@]}\" key list 2>/dev/null |\n"
        "                while read -r word _; do [ \"$word\" = NAME ] || echo \"$word\"; done)\" -- "
        "\"$cur\")) ;;\n"
        "        0,SHELL) COMPREPLY=($(compgen -W bash -- \"$cur\")) ;;\n"
        "        0,FILE | 1,NAME\\ *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
        "        esac\n"
        "    fi\n"
        "}\n"
        "complete -o filenames -F _keyholdctl keyholdctl\n");
    return KH_OK;
}
