/* SPDX-License-Identifier: Apache-2.0 */
/* The front's metrics: the document in Prometheus' text format (version 0.0.4), and who it is served to. */
#ifndef KH_AGENT_METRICS_H
#define KH_AGENT_METRICS_H

#include "front.h"

/* ---- metrics.c */
/*
 * The document, made of counters alone: its size follows from the configuration (the number of identities),
 * not from anything that a peer says. To be freed; NULL: no memory.
 */
char *kh_metrics_document(const kh_front *front, size_t *len);

/* ---- metrics_http.c */
/* Takes over a listening descriptor; it takes the place of one of the same address. KH_E_MEMORY. */
KH_MUST_USE kh_result kh_metrics_listen(kh_front *front, int fd, const char *address);
/* Serves what the configuration names, and drops the rest. */
void kh_metrics_apply(kh_front *front);

#endif
