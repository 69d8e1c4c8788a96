/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shape of each message as a table of fields (SPEC.md, "Messages"): which, in which order, of which type,
 * within which limits. The codec walks these tables; nothing else knows them.
 */
#ifndef KH_SHAPE_H
#define KH_SHAPE_H

#include <keyhold/protocol.h>

#define KH_KEY_TEXT_MAX (KH_NAME_MAX + 11) /* name, slash, ten digits */
#define KH_LABEL_MAX 1024                  /* bytes of an OAEP label */
#define KH_CLIENT_NAME_MAX KH_NAME_MAX
#define KH_DETAIL_MAX 255

typedef enum kh_field_kind {
    KH_FIELD_U32,
    KH_FIELD_U64,
    KH_FIELD_BOOL,
    KH_FIELD_STR,
    KH_FIELD_BIN,
    KH_FIELD_PROOF, /* bin of KH_PROOF_LEN bytes or none */
    KH_FIELD_KEY,   /* request.key: str, or bin of KH_KEY_ID_LEN bytes */
    KH_FIELD_ENTRY, /* reply.entry */
    KH_FIELD_PLACED, /* reply.entry with tier, place and validity */
    KH_FIELD_ENTRIES,
} kh_field_kind;

/*
 * A field below min is malformed (a bin of fixed length: min == max, both malformed), above max too large.
 * For numbers min and max are values, for str and bin lengths in bytes.
 */
typedef struct kh_field {
    kh_field_kind kind;
    size_t offset; /* in kh_request, kh_reply or kh_key_entry */
    uint32_t min;
    uint32_t max;
} kh_field;

typedef struct kh_shape {
    const kh_field *fields;
    uint32_t count;
} kh_shape;

/* The fields of a request after the operation; NULL: no such operation. */
const kh_shape *kh_shape_request(uint32_t op);
/* The fields of a reply after the status; NULL: no such operation, or it has no reply. */
const kh_shape *kh_shape_reply(uint32_t op);
/* The fields of a reply with a status other than 0, after the status. */
const kh_shape *kh_shape_error(uint32_t op);
/* The fields of an entry. */
const kh_shape *kh_shape_entry(void);
const kh_shape *kh_shape_placed(void);
/* Whether the messages of this operation have no id: hello and auth. */
bool kh_op_is_handshake(uint32_t op);

#endif
