# SPDX-License-Identifier: Apache-2.0
# Where nginx and OpenSSL look for modules, relative to the prefix: Debian has them in /usr/lib/nginx/modules and
# /usr/lib/TRIPLET/ossl-modules, and `cmake --install --prefix /usr` must put ours there. Each is a cache variable.

# kh_below_usr(OUT PATH FALLBACK): PATH without its /usr/, or FALLBACK when it is elsewhere.
function(kh_below_usr out path fallback)
    if(path MATCHES "^/usr/(local/)?([^/].*)$")
        set(${out} ${CMAKE_MATCH_2} PARENT_SCOPE)
    else()
        set(${out} ${fallback} PARENT_SCOPE)
    endif()
endfunction()

pkg_get_variable(kh_ossl_modules libcrypto modulesdir)
kh_below_usr(kh_ossl_modules "${kh_ossl_modules}" ${CMAKE_INSTALL_LIBDIR}/ossl-modules)
set(KH_OSSL_MODULES_DIR ${kh_ossl_modules} CACHE STRING "Where OpenSSL looks for providers")

find_program(KH_NGINX_BIN nginx PATHS /usr/sbin /usr/local/sbin DOC "the nginx that will load the module")
set(kh_nginx_modules "")
if(KH_NGINX_BIN)
    execute_process(COMMAND ${KH_NGINX_BIN} -V ERROR_VARIABLE kh_nginx_built OUTPUT_QUIET)
    if(kh_nginx_built MATCHES "--modules-path=([^ \n]+)")
        set(kh_nginx_modules ${CMAKE_MATCH_1})
    endif()
endif()
kh_below_usr(kh_nginx_modules "${kh_nginx_modules}" lib/nginx/modules)
set(KH_NGINX_MODULES_DIR ${kh_nginx_modules} CACHE STRING "Where nginx looks for modules")
