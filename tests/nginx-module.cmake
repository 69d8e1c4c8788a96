# SPDX-License-Identifier: Apache-2.0
# The callers' side: a small agent that can be told to misbehave.
if(KH_TESTS)
    add_executable(kh-test-agent tools/test_agent.c)
    target_link_libraries(kh-test-agent PRIVATE keyhold-flags keyhold-client keyhold-keyid keyhold-wire OpenSSL::Crypto)
endif()
