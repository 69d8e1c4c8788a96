# SPDX-License-Identifier: Apache-2.0
# The callers' side: the provider, the nginx module's coroutines, and a small agent that can be told to misbehave.
if(KH_TESTS)
    add_executable(kh-test-agent tools/test_agent.c tools/test_agent_keys.c)
    target_link_libraries(kh-test-agent PRIVATE keyhold-flags keyhold-client keyhold-keyid keyhold-wire OpenSSL::Crypto)

    kh_unit_test(test_scheme LIBS keyhold-provider-core)
    kh_unit_test(test_provider LIBS keyhold-provider-core)

    # ThreadSanitizer would take a switch of stacks for something else; a worker has one thread.
    if(TARGET ngx_http_keyhold_module AND NOT KH_SANITIZE MATCHES "thread")
        add_executable(kh-test-sizes tools/kh_test_sizes.c)
        # Once with our own switch and once with the C library's.
        get_target_property(kh_nginx_includes ngx_http_keyhold_module INCLUDE_DIRECTORIES)
        kh_unit_test(test_coro SOURCES ${PROJECT_SOURCE_DIR}/nginx-module/ngx_keyhold_coro.c)
        add_executable(test_coro_ucontext unit/test_coro.c ${PROJECT_SOURCE_DIR}/nginx-module/ngx_keyhold_coro.c)
        target_compile_definitions(test_coro_ucontext PRIVATE NGX_KEYHOLD_UCONTEXT=1)
        target_link_libraries(test_coro_ucontext PRIVATE keyhold-flags cmocka)
        add_test(NAME test_coro_ucontext COMMAND test_coro_ucontext)
        set_tests_properties(test_coro_ucontext PROPERTIES LABELS unit TIMEOUT 120)
        foreach(test test_coro test_coro_ucontext kh-test-sizes)
            target_include_directories(${test} SYSTEM PRIVATE ${kh_nginx_includes})
            target_include_directories(${test} PRIVATE ${PROJECT_SOURCE_DIR}/nginx-module ${PROJECT_SOURCE_DIR}/protocol)
            target_compile_options(${test} PRIVATE -Wno-unused-parameter)
            target_link_libraries(${test} PRIVATE keyhold-flags keyhold-client)
        endforeach()
    endif()
    if(TARGET ngx_http_keyhold_module)
        get_target_property(kh_nginx_includes ngx_http_keyhold_module INCLUDE_DIRECTORIES)
        kh_unit_test(test_balance SOURCES ${PROJECT_SOURCE_DIR}/nginx-module/ngx_keyhold_balance.c
            ${PROJECT_SOURCE_DIR}/nginx-module/ngx_keyhold_missing.c)
        target_include_directories(test_balance SYSTEM PRIVATE ${kh_nginx_includes})
        target_include_directories(test_balance PRIVATE ${PROJECT_SOURCE_DIR}/nginx-module)
        target_compile_options(test_balance PRIVATE -Wno-unused-parameter)
    endif()
endif()
