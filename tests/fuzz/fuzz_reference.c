/* SPDX-License-Identifier: Apache-2.0 */
/* Key references and tokens: what an operator's file may hold. What is accepted has its views within the
 * input. */
#include <keyhold/client.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    kh_bytes name;
    kh_bytes spki;
    kh_credential cred;
    char pem[2048];
    char text[KH_NAME_MAX + 12];
    size_t pem_len = 0;

    if (kh_reference_decode(data, len, &name, &spki) == KH_OK) {
        require(name.data > data && name.data + name.len <= spki.data && spki.data + spki.len == data + len);
        require(name.len < sizeof(text));
        memcpy(text, name.data, name.len);
        text[name.len] = '\0';
        require(kh_reference_encode(text, spki, pem, sizeof(pem), &pem_len) == KH_OK);
    }
    if (kh_credential_parse((const char *)data, len, &cred) == KH_OK) {
        require(kh_name_valid(cred.identity, strlen(cred.identity)));
        kh_credential_wipe(&cred);
    }
    return 0;
}
