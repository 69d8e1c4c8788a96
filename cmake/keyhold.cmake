# SPDX-License-Identifier: Apache-2.0
# What all rooms share: the language, the warnings, the hardening. On targets, never global.

add_library(keyhold-flags INTERFACE)
target_compile_features(keyhold-flags INTERFACE c_std_11)
target_compile_options(keyhold-flags INTERFACE
    -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wundef
    -Werror=implicit-function-declaration -Werror=incompatible-pointer-types -Werror=unused-result
    -fstack-protector-strong -fno-omit-frame-pointer -fvisibility=hidden)
target_compile_definitions(keyhold-flags INTERFACE _GNU_SOURCE KH_VERSION="${PROJECT_VERSION}")
if(CMAKE_BUILD_TYPE STREQUAL "Release" OR CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
    target_compile_options(keyhold-flags INTERFACE -D_FORTIFY_SOURCE=2)
endif()
target_link_options(keyhold-flags INTERFACE -Wl,-z,relro -Wl,-z,now)
if(KH_SANITIZE)
    target_compile_options(keyhold-flags INTERFACE -fsanitize=${KH_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(keyhold-flags INTERFACE -fsanitize=${KH_SANITIZE})
endif()
if(KH_TEST_PROBES)
    target_compile_definitions(keyhold-flags INTERFACE KH_TEST_PROBES=1)
endif()

# kh_library(NAME sources…): a static, position-independent library with the house's flags.
function(kh_library name)
    add_library(${name} STATIC ${ARGN})
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(${name} PRIVATE keyhold-flags)
endfunction()

# kh_unit_test(NAME LIBS lib…): tests/unit/NAME.c, a cmocka binary, run by ctest with the label "unit".
function(kh_unit_test name)
    cmake_parse_arguments(arg "" "TIMEOUT" "LIBS;SOURCES" ${ARGN})
    if(NOT KH_TESTS)
        return()
    endif()
    add_executable(${name} ${PROJECT_SOURCE_DIR}/tests/unit/${name}.c ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE keyhold-flags ${arg_LIBS} cmocka)
    target_compile_definitions(${name} PRIVATE KH_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    add_test(NAME ${name} COMMAND ${name})
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 120)
    endif()
    set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT ${arg_TIMEOUT})
endfunction()

# kh_fuzz(NAME LIBS lib…): tests/fuzz/NAME.c with LLVMFuzzerTestOneInput. With clang and KH_SANITIZE containing "fuzzer"
# a libFuzzer program; else a program that replays its corpus, run by ctest with the label "fuzz".
function(kh_fuzz name)
    cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
    if(NOT KH_TESTS)
        return()
    endif()
    set(replay ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
    if(KH_SANITIZE MATCHES "fuzzer")
        set(replay)
    endif()
    add_executable(${name} ${PROJECT_SOURCE_DIR}/tests/fuzz/${name}.c ${replay})
    target_link_libraries(${name} PRIVATE keyhold-flags ${arg_LIBS})
    if(KH_SANITIZE MATCHES "fuzzer")
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    else()
        add_test(NAME ${name} COMMAND ${name} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
        set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 120)
    endif()
endfunction()
