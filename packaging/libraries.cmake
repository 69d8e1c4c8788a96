# SPDX-License-Identifier: Apache-2.0
# The two libraries as others use them: one archive each, made of the rooms' parts, with the public headers, a pkg-config
# file and a CMake package (find_package(Keyhold), targets Keyhold::protocol and Keyhold::keystore).
include(CMakePackageConfigHelpers)
find_package(SQLite3 REQUIRED)

set(kh_protocol_parts keyhold-types keyhold-wire keyhold-keyid keyhold-tls keyhold-client)
set(kh_keystore_parts keyhold-keystore keyhold-kernels keyhold-kernels-portable)
if(TARGET keyhold-kernels-ifma)
    list(APPEND kh_keystore_parts keyhold-kernels-ifma)
endif()

set(kh_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Keyhold)
file(RELATIVE_PATH KH_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" KH_PC_PREFIX ${KH_PC_PREFIX}) # an installed tree may be moved

foreach(room protocol keystore)
    set(library keyhold-lib${room})
    add_library(${library} STATIC)
    foreach(part ${kh_${room}_parts})
        target_sources(${library} PRIVATE $<TARGET_OBJECTS:${part}>)
    endforeach()
    set_target_properties(${library} PROPERTIES OUTPUT_NAME keyhold-${room} EXPORT_NAME ${room} LINKER_LANGUAGE C)
    target_include_directories(${library} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    install(TARGETS ${library} EXPORT Keyhold ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development)
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room}/include/keyhold DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
            COMPONENT development FILES_MATCHING PATTERN "*.h")
    configure_file(libkeyhold-${room}.pc.in libkeyhold-${room}.pc @ONLY)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/libkeyhold-${room}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
            COMPONENT development)
endforeach()
target_link_libraries(keyhold-libprotocol INTERFACE OpenSSL::SSL OpenSSL::Crypto Threads::Threads)
target_link_libraries(keyhold-libkeystore INTERFACE keyhold-libprotocol OpenSSL::Crypto SQLite::SQLite3 Threads::Threads)

install(EXPORT Keyhold NAMESPACE Keyhold:: FILE KeyholdTargets.cmake DESTINATION ${kh_config_dir} COMPONENT development)
write_basic_package_version_file(KeyholdConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES KeyholdConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/KeyholdConfigVersion.cmake DESTINATION ${kh_config_dir}
        COMPONENT development)
