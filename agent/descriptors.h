/* SPDX-License-Identifier: Apache-2.0 */
/* The standard descriptors, for the main() of keyholdd and of keyholdctl. */
#ifndef KH_AGENT_DESCRIPTORS_H
#define KH_AGENT_DESCRIPTORS_H

/*
 * Opens 0, 1 and 2 where they are closed, so that no socket and no file of ours gets these numbers and is
 * written to as the log. Before anything else is opened.
 */
void kh_descriptors_standard(void);

#endif
