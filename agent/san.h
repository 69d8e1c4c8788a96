/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subject alternative names as text: "dns:edge1.example", "uri:spiffe://example/edge1", "ip:192.0.2.7",
 * "email:ops@example". By one of them a caller over TCP is known. Pure functions.
 */
#ifndef KH_AGENT_SAN_H
#define KH_AGENT_SAN_H

#include <keyhold/types.h>

#define KH_SAN_MAX 2048 /* bytes of the longest, without its zero */

/*
 * The one spelling of a name, so that two of them are the same if their bytes are: DNS names and the domain of an email
 * address in small letters, IP addresses as inet_ntop writes them. KH_E_INVALID: it is no such name, or a wildcard,
 * which names nobody.
 */
KH_MUST_USE kh_result kh_san_canonical(const char *text, size_t len, char out[KH_SAN_MAX + 1]);

#endif
