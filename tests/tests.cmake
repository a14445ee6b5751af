# One CTest entry per C test program, and one for all tests written in Python.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

file(GLOB TEST_SOURCES CONFIGURE_DEPENDS tests/test_*.c)
if(NOT ONNX_GENERATED)
  list(FILTER TEST_SOURCES EXCLUDE REGEX test_onnx)
endif()
add_library(ref STATIC tests/ref.c)
target_include_directories(ref PUBLIC tests PRIVATE src kernels)
target_link_libraries(ref PUBLIC core m)

set(RUN_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_btl=^openib CNNSCOPE_BUILD=${CMAKE_BINARY_DIR} CNNSCOPE_BIN=${CMAKE_BINARY_DIR}/cnnscope
    ASAN_OPTIONS=detect_leaks=0)

foreach(SOURCE ${TEST_SOURCES})
  get_filename_component(NAME ${SOURCE} NAME_WE)
  add_executable(${NAME} ${SOURCE})
  target_link_libraries(${NAME} PRIVATE core ref PkgConfig::CMOCKA)
  add_test(NAME ${NAME} COMMAND ${NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${NAME} PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 600)
endforeach()

# Runs one stage on a matrix, for the Python tests that compare it with scikit-learn.
add_executable(tsne_driver tests/tsne_driver.c)
target_link_libraries(tsne_driver PRIVATE core)

# All Python files in one run, so that they share the demo's result. Those that run the program do so in this build.
find_program(PYTHON python3 PATHS ${CMAKE_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)
if(PYTHON AND NOT SANITIZE)
  add_test(NAME python COMMAND ${PYTHON} -m pytest -q -rs --no-header --durations=10 tests WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(python PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 2400)
elseif(NOT SANITIZE)
  message(STATUS "No .venv (scripts/setup.sh makes it): the tests written in Python are left out")
endif()
