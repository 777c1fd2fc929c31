# `cmake --install` and find_package(kktorch): targets kktorch::kktorch and kktorch::models. LibTorch is found again on the
# user's side by the same KktorchTorch.cmake.
include(CMakePackageConfigHelpers)
set(kktorch_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kktorch)

install(TARGETS kktorch kktorch_models EXPORT kktorchTargets)
# ops/common and ops/attention are private.
install(DIRECTORY ops models DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h"
        PATTERN common EXCLUDE PATTERN attention EXCLUDE)
install(EXPORT kktorchTargets NAMESPACE kktorch:: DESTINATION ${kktorch_config_dir})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/kktorchConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/kktorchConfig.cmake INSTALL_DESTINATION ${kktorch_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kktorchConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kktorchConfig.cmake ${PROJECT_BINARY_DIR}/kktorchConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/KktorchTorch.cmake DESTINATION ${kktorch_config_dir})
if(TARGET kktorch_program)
  install(TARGETS kktorch_program)
endif()
