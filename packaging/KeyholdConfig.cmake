# SPDX-License-Identifier: Apache-2.0
include(CMakeFindDependencyMacro)
find_dependency(OpenSSL 3.0)
find_dependency(SQLite3)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/KeyholdTargets.cmake)
