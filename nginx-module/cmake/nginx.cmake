# SPDX-License-Identifier: Apache-2.0
# The headers of the installed nginx, configured as it was.

# kh_nginx_headers(OUT): makes nginx's generated headers and sets OUT to their directory. Stops with a clear message when
# the sources are not those of the binary: such a module would be refused by nginx at best.
function(kh_nginx_headers out)
    if(NOT EXISTS ${KH_NGINX_SRC}/configure OR NOT EXISTS ${KH_NGINX_SRC}/src/core/nginx.h)
        message(FATAL_ERROR "nginx module: no nginx source tree at ${KH_NGINX_SRC}. Install nginx-dev, name one with "
            "-DKH_NGINX_SRC=DIR, or leave the module out with -DKH_NGINX_MODULE=OFF.")
    endif()
    file(STRINGS ${KH_NGINX_SRC}/src/core/nginx.h line REGEX "#define NGINX_VERSION ")
    string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" source_version "${line}")

    if(NOT KH_NGINX_BIN)
        message(FATAL_ERROR "nginx module: no nginx found. Install nginx, name it with -DKH_NGINX_BIN=FILE, or leave "
            "the module out with -DKH_NGINX_MODULE=OFF.")
    endif()
    execute_process(COMMAND ${KH_NGINX_BIN} -V ERROR_VARIABLE about OUTPUT_QUIET RESULT_VARIABLE failed)
    string(REGEX MATCH "nginx version: [^/]*/([0-9.]+)" matched "${about}")
    set(binary_version "${CMAKE_MATCH_1}")
    if(failed OR NOT binary_version)
        message(FATAL_ERROR "nginx module: ${KH_NGINX_BIN} -V does not say which version it is.")
    endif()
    if(NOT binary_version STREQUAL source_version)
        message(FATAL_ERROR "nginx module: ${KH_NGINX_BIN} is nginx ${binary_version}, but the sources in "
            "${KH_NGINX_SRC} are of nginx ${source_version}. A module built so would not be loaded. Install the "
            "nginx-dev of the same version as nginx (apt-get install nginx nginx-dev).")
    endif()

    set(objs ${CMAKE_CURRENT_BINARY_DIR}/nginx-${source_version})
    file(SHA256 ${KH_NGINX_SRC}/configure stamp)
    string(SHA256 stamp "${stamp} ${about} ${KH_NGINX_SRC} ${KH_NGINX_CONF_FLAGS}")
    set(stamped "")
    if(EXISTS ${objs}/keyhold.stamp)
        file(READ ${objs}/keyhold.stamp stamped)
    endif()
    if(NOT stamped STREQUAL stamp)
        message(STATUS "nginx module: configuring the headers of nginx ${source_version}")
        if(KH_NGINX_CONF_FLAGS)
            set(script "./configure ${KH_NGINX_CONF_FLAGS} --builddir=${objs}")
        elseif(EXISTS ${KH_NGINX_SRC}/conf_flags)
            set(script ". ./conf_flags && ./configure \"\${NGX_CONF_FLAGS[@]}\" --builddir=${objs}")
        else()
            string(REGEX MATCH "configure arguments:([^\n]*)" matched "${about}")
            set(script "./configure ${CMAKE_MATCH_1} --builddir=${objs}")
        endif()
        execute_process(COMMAND bash -c "${script}" WORKING_DIRECTORY ${KH_NGINX_SRC} RESULT_VARIABLE failed
            OUTPUT_VARIABLE log ERROR_VARIABLE log)
        if(failed)
            message(FATAL_ERROR "nginx module: nginx's configure failed:\n${log}")
        endif()
        file(WRITE ${objs}/keyhold.stamp ${stamp})
    endif()
    set(${out} ${objs} PARENT_SCOPE)
endfunction()
