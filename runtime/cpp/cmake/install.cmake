# The install target, the CMake package (of the build tree and of the install tree) and pkg-config.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/atm_runtime)
set(tools atm_classify atm_self_test)

# Paths that hold wherever the prefix is moved to.
file(RELATIVE_PATH from_tools ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
set_target_properties(${tools} PROPERTIES INSTALL_RPATH "$ORIGIN/${from_tools}")
set_target_properties(atm_runtime PROPERTIES INSTALL_RPATH "$ORIGIN")
if(ATM_BUNDLE)
  set(bundled RUNTIME_DEPENDENCIES POST_EXCLUDE_REGEXES "^/lib" "^/usr/lib")
  get_filename_component(library ${ONNXRUNTIME_LIBRARY} REALPATH)
  get_filename_component(library_dir ${library} DIRECTORY)
  find_file(ONNXRUNTIME_LICENSE LICENSE PATHS ${ONNXRUNTIME_ROOT} ${library_dir}/.. NO_DEFAULT_PATH)
  if(ONNXRUNTIME_LICENSE)
    install(FILES ${ONNXRUNTIME_LICENSE} DESTINATION ${CMAKE_INSTALL_DOCDIR}
      RENAME LICENSE.onnxruntime)
  endif()
else()
  set_target_properties(atm_runtime PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
endif()

install(TARGETS atm_runtime EXPORT atm_runtime-targets ${bundled}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS ${tools} EXPORT atm_runtime-targets)
install(DIRECTORY include/ TYPE INCLUDE)
install(FILES ../../LICENSE TYPE DOC)

configure_package_config_file(cmake/atm_runtime-config.cmake.in atm_runtime-config.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(atm_runtime-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/atm_runtime-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/atm_runtime-config-version.cmake DESTINATION ${package_dir})
install(EXPORT atm_runtime-targets NAMESPACE atm_runtime:: DESTINATION ${package_dir})
export(EXPORT atm_runtime-targets NAMESPACE atm_runtime:: FILE atm_runtime-targets.cmake)

set(pc_dir ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH ATM_PC_TO_PREFIX ${pc_dir} ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" ATM_PC_TO_PREFIX "${ATM_PC_TO_PREFIX}")
file(RELATIVE_PATH ATM_PC_INCLUDEDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
file(RELATIVE_PATH ATM_PC_LIBDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
configure_file(cmake/atm_runtime.pc.in atm_runtime.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/atm_runtime.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
