/* SPDX-License-Identifier: Apache-2.0 */
/* The one error of a run: a line that says what failed, why, and what to do. */
#include "ctl.h"

#include <stdarg.h>
#include <string.h>

static kh_result fail(ctl_error *error, kh_result result, ctl_exit exit_code, const char *format,
                      va_list args)
{
    int len = 0;

    error->result = result;
    error->exit_code = exit_code;
    len = vsnprintf(error->text, sizeof(error->text), format, args);
    if (len < 0) {
        error->text[0] = '\0';
    }
    /* File names and the agent's words come from outside: one line stays one line, and no terminal is driven
     * by it. */
    for (char *c = error->text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
    return result;
}

kh_result ctl_fail(ctl_error *error, kh_result result, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    result = fail(error, result, CTL_FAILED, format, args);
    va_end(args);
    return result;
}

kh_result ctl_fail_usage(ctl_error *error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)fail(error, KH_E_INVALID, CTL_USAGE, format, args);
    va_end(args);
    return KH_E_INVALID;
}

kh_result ctl_fail_unreachable(ctl_error *error, kh_result result, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    result = fail(error, result, CTL_UNREACHABLE, format, args);
    va_end(args);
    return result;
}
