/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Test builds (KH_TEST_PROBES): each role tries what it must not be able to do, and logs how it was refused.
 */
#ifndef KH_AGENT_PROBE_H
#define KH_AGENT_PROBE_H

/* One line "probe open=EPERM exec=… connect=… ptrace=… dump=…", if KEYHOLD_PROBE=1 is in the environment. */
#ifdef KH_TEST_PROBES
void kh_probe(const char *role);
#else
static inline void kh_probe(const char *role)
{
    (void)role;
}
#endif

#endif
