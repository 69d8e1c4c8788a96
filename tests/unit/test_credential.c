/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens: the file, the line, the proof. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <keyhold/client.h>

#include "protocol_vectors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEX "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f"
#define LINE "keyhold-token-1 edge-1 " HEX "\n"

static kh_result parse(const char *text, kh_credential *cred)
{
    return kh_credential_parse(text, strlen(text), cred);
}

static void test_line(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "keyhold-token-1",
        "keyhold-token-1 ",
        "keyhold-token-1 edge-1",
        "keyhold-token-1 edge-1 ",
        "keyhold-token-2 edge-1 " HEX,
        "keyhold-token-1 edge 1 " HEX,
        "keyhold-token-1  " HEX,
        "keyhold-token-1 edge-1  " HEX,
        "keyhold-token-1 edge-1 " HEX "0",
        "keyhold-token-1 edge-1 " HEX "00",
        "keyhold-token-1 edge-1 " HEX "\n\n",
        "keyhold-token-1 edge-1 " HEX " ",
        "keyhold-token-1 -edge " HEX,
        " keyhold-token-1 edge-1 " HEX,
    };
    kh_credential cred;

    (void)state;
    assert_int_equal(parse(LINE, &cred), KH_OK);
    assert_string_equal(cred.identity, "edge-1");
    assert_memory_equal(cred.secret, KH_VECTOR_SECRET, KH_TOKEN_SECRET_LEN);
    assert_int_equal(kh_credential_parse(LINE, sizeof(LINE) - 2, &cred), KH_OK); /* without the line's end */
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(parse(bad[i], &cred), KH_E_MALFORMED);
    }
    kh_credential_wipe(&cred);
    for (size_t i = 0; i < sizeof(cred); i++) {
        assert_int_equal(((const uint8_t *)&cred)[i], 0);
    }
}

/* Every character in the place of a hex digit: the digits count for what they are, the others are refused. */
static void test_hex_digits(void **state)
{
    char line[] = "keyhold-token-1 a " HEX;
    const size_t at = sizeof("keyhold-token-1 a ") - 1;
    kh_credential cred;

    (void)state;
    for (unsigned c = 1; c < 256; c++) {
        const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *found = strchr(digits, (int)c);

        line[at] = (char)c;
        line[at + 1] = 'f';
        if (found != NULL) {
            assert_int_equal(parse(line, &cred), KH_OK);
            assert_int_equal(cred.secret[0], (found - digits) % 16 * 16 + 15);
        } else {
            assert_int_equal(parse(line, &cred), KH_E_MALFORMED);
        }
    }
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static void test_file(void **state)
{
    char directory[] = "/tmp/keyhold-test-XXXXXX";
    char path[64];
    char large[2000];
    kh_credential cred;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/token", directory);
    assert_int_equal(kh_credential_load(path, &cred), KH_E_IO);
    assert_int_equal(kh_credential_load(directory, &cred), KH_E_IO);
    write_file(path, LINE, 0600);
    assert_int_equal(kh_credential_load(path, &cred), KH_OK);
    assert_string_equal(cred.identity, "edge-1");
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(kh_credential_load(path, &cred), KH_E_FORBIDDEN);
    assert_int_equal(chmod(path, 0604), 0);
    assert_int_equal(kh_credential_load(path, &cred), KH_E_FORBIDDEN);
    write_file(path, "something else\n", 0600);
    assert_int_equal(kh_credential_load(path, &cred), KH_E_MALFORMED);
    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    write_file(path, large, 0600);
    assert_int_equal(kh_credential_load(path, &cred), KH_E_MALFORMED);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* does not hold up the start */
    assert_int_equal(kh_credential_load(path, &cred), KH_E_IO);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
}

/* The proofs of the golden vectors, which were made by another implementation. */
static void test_proofs(void **state)
{
    uint8_t proof[KH_PROOF_LEN];
    kh_credential cred;

    (void)state;
    assert_int_equal(parse(LINE, &cred), KH_OK);
    assert_true(
        kh_credential_prove(&cred, "keyhold-1 client", KH_VECTOR_NONCE_CLIENT, KH_VECTOR_NONCE_AGENT, proof));
    assert_memory_equal(proof, kh_vector_proof_client, sizeof(proof));
    assert_true(
        kh_credential_prove(&cred, "keyhold-1 agent", KH_VECTOR_NONCE_CLIENT, KH_VECTOR_NONCE_AGENT, proof));
    assert_memory_equal(proof, kh_vector_proof_agent, sizeof(proof));
    assert_false(kh_credential_prove(&cred, "a label that is longer than any label can be",
                                     KH_VECTOR_NONCE_CLIENT, KH_VECTOR_NONCE_AGENT, proof));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_hex_digits),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_proofs),
    };

    return cmocka_run_group_tests_name("credential", tests, NULL, NULL);
}
