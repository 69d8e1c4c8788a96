/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The certificates and the key of a TCP listener on their way: the supervisor reads the files and checks them, the front
 * gets what is in them. Certificates travel in sealed memory files, the key in the message, from locked memory to
 * locked memory.
 */
#ifndef KH_AGENT_TLS_MATERIAL_H
#define KH_AGENT_TLS_MATERIAL_H

#include "channel.h"
#include "config.h"
#include "tls.h"

typedef struct kh_material {
    int certificate_fd, ca_fd, crl_fd; /* -1: none */
    uint8_t *key;                      /* DER, KH_MATERIAL_KEY_MAX bytes of kh_secret_alloc; NULL: none */
    size_t key_len;
    char warning[KH_CONFIG_ERROR_MAX]; /* what callers will stumble over; "": nothing */
} kh_material;

#define KH_MATERIAL_KEY_MAX 12288 /* bytes; RSA with 16384 bits has 9300 */

/*
 * Reads and checks what the listener names. Error (KH_CONFIG_ERROR_MAX bytes): "FILE:LINE: OPTION PATH: what". On failure
 * nothing is left to free.
 */
KH_MUST_USE kh_result kh_material_load(const kh_config *config, const kh_config_listener *listener,
                                       kh_material *material, char *error);
void kh_material_free(kh_material *material);
/* One for each listener of the configuration, those of Unix sockets empty. *materials is NULL on failure. */
KH_MUST_USE kh_result kh_materials_load(const kh_config *config, kh_material **materials, char *error);
void kh_materials_free(kh_material *materials, size_t count);

/* As a KH_MSG_TLS. `listener` is its index in the configuration. KH_E_IO, KH_E_MEMORY. */
KH_MUST_USE kh_result kh_material_send(const kh_material *material, int channel_fd, uint32_t listener);
/* The other end of it: makes a server of it. KH_E_MALFORMED, and what kh_tls_server_new gives. */
KH_MUST_USE kh_result kh_material_receive(const kh_channel_message *message, uint32_t *listener,
                                          kh_tls_server **server);

#endif
