/* SPDX-License-Identifier: Apache-2.0 */
/* The pinned import key of the store. See pin.h. */
#include "pin.h"
#include "output.h"
#include "secret.h"

#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char magic[] = "keyhold-import-1 ";

void pin_format(const uint8_t import_public[KH_IMPORT_PUBLIC_LEN], char line[PIN_LINE_MAX])
{
    char hex[2 * KH_IMPORT_PUBLIC_LEN + 1];

    (void)snprintf(line, PIN_LINE_MAX, "%s%s\n", magic, output_hex(import_public, KH_IMPORT_PUBLIC_LEN, hex));
}

static int nibble(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

kh_result pin_parse(const char *text, size_t len, uint8_t import_public[KH_IMPORT_PUBLIC_LEN])
{
    size_t magic_len = sizeof(magic) - 1;

    if (len > 0 && text[len - 1] == '\n') {
        len--;
    }
    if (len != magic_len + 2 * KH_IMPORT_PUBLIC_LEN || memcmp(text, magic, magic_len) != 0) {
        return KH_E_MALFORMED;
    }
    for (size_t i = 0; i < KH_IMPORT_PUBLIC_LEN; i++) {
        int high = nibble(text[magic_len + 2 * i]);
        int low = nibble(text[magic_len + 2 * i + 1]);

        if (high < 0 || low < 0) {
            return KH_E_MALFORMED;
        }
        import_public[i] = (uint8_t)(high << 4 | low);
    }
    return KH_OK;
}

kh_result pin_load(const char *path, uint8_t import_public[KH_IMPORT_PUBLIC_LEN], ctl_error *error)
{
    ctl_secret file = {0};
    kh_result result = KH_OK;

    if (access(path, F_OK) != 0) {
        return ctl_fail(
            error, KH_E_IO,
            "the pin of the store's import key is missing: %s; copy %s from the agent's host, or give "
            "--pin with the fingerprint that keyholdctl init printed",
            path, PIN_FILE);
    }
    result = ctl_secret_read_file(path, PIN_LINE_MAX, &file, error);
    if (result == KH_OK && pin_parse((const char *)file.data, file.len, import_public) != KH_OK) {
        result = ctl_fail(error, KH_E_MALFORMED,
                          "%s is not a pin (one line, \"%sHEX\"); copy it again from the agent's host", path,
                          magic);
    }
    ctl_secret_free(&file);
    return result;
}

/* The fingerprint that is to be met: given on the command line, or of the pin file. */
static kh_result expected_fingerprint(ctl_run *ctl, char expected[52])
{
    const char *pin = ctl_args_value(&ctl->args, "pin");
    const char *config = ctl_args_value(&ctl->args, "config");
    uint8_t pinned[KH_IMPORT_PUBLIC_LEN] = {0};
    char *config_copy = NULL;
    char *path = NULL;
    kh_result result = KH_OK;

    if (pin != NULL && strncmp(pin, "SHA256:", 7) == 0) {
        (void)snprintf(expected, 52, "%s", pin);
        return KH_OK;
    }
    config_copy = strdup(config != NULL ? config : CTL_DEFAULT_CONFIG);
    if (config_copy == NULL ||
        (pin == NULL && asprintf(&path, "%s/%s", dirname(config_copy), PIN_FILE) < 0)) {
        path = NULL;
        result = ctl_fail(&ctl->error, KH_E_MEMORY, "cannot read the pin: out of memory");
        goto done;
    }
    result = pin_load(pin != NULL ? pin : path, pinned, &ctl->error);
    if (result == KH_OK) {
        kh_import_fingerprint(pinned, expected);
    }
done:
    free(path);
    free(config_copy);
    return result;
}

kh_result pin_check(ctl_run *ctl, const uint8_t import_public[KH_IMPORT_PUBLIC_LEN])
{
    char fingerprint[52];
    char expected[52];
    kh_result result = expected_fingerprint(ctl, expected);

    kh_import_fingerprint(import_public, fingerprint);
    if (result == KH_OK && strcmp(expected, fingerprint) != 0) {
        result = ctl_fail(&ctl->error, KH_E_MISMATCH,
                          "the agent's import key is %s, but %s is pinned; nothing was sent. If the store "
                          "was made anew, take its new "
                          "%s; otherwise somebody stands between",
                          fingerprint, expected, PIN_FILE);
    }
    return result;
}
