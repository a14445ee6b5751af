# One CTest entry per C test program, and one for all tests written in Python.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

file(GLOB TEST_SOURCES CONFIGURE_DEPENDS tests/test_*.c)
if(NOT ONNX_GENERATED)
  list(FILTER TEST_SOURCES EXCLUDE REGEX test_onnx)
endif()
if(CUDA OR KERNELS_ONLY)
  list(FILTER TEST_SOURCES INCLUDE REGEX "test_(kernels|ops|ends|graph|linalg|tsne|neighbors)")
endif()
add_library(ref STATIC tests/ref.c)
target_include_directories(ref PUBLIC tests PRIVATE src kernels)
target_link_libraries(ref PUBLIC core m)

set(RUN_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_pml=ob1 CNNSCOPE_BUILD=${CMAKE_BINARY_DIR} CNNSCOPE_BIN=${CMAKE_BINARY_DIR}/cnnscope
    ASAN_OPTIONS=detect_leaks=0)

foreach(SOURCE ${TEST_SOURCES})
  get_filename_component(NAME ${SOURCE} NAME_WE)
  add_executable(${NAME} ${SOURCE})
  target_link_libraries(${NAME} PRIVATE core ref PkgConfig::CMOCKA)
  add_test(NAME ${NAME} COMMAND ${NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${NAME} PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 600)
endforeach()

if(TARGET test_onnx_suite)
  target_sources(test_onnx_suite PRIVATE tests/onnx_ways.c)
endif()

if(CUDA STREQUAL "HOST")
  cudahost_sources(tests/cudahost/selftest.cu)
  add_executable(cudahost_selftest tests/cudahost/selftest.cu)
  target_include_directories(cudahost_selftest PRIVATE tests/cudahost kernels/cuda)
  target_link_libraries(cudahost_selftest PRIVATE kernels)
  add_test(NAME cudahost_selftest COMMAND cudahost_selftest)
  set_tests_properties(cudahost_selftest PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 600)
endif()

# What a device reaches, in CSV; no test.
add_executable(bench_device tests/bench_device.c)
target_link_libraries(bench_device PRIVATE core ref)

# Device collectives: right for any number of ranks; and what ends a job with one line.
if(NOT KERNELS_ONLY)
  add_executable(comm_driver tests/comm_driver.c)
  target_link_libraries(comm_driver PRIVATE core)
  # ranks_test(NAME RANKS EXPECTED ENVIRONMENT [ARGUMENT])
  function(ranks_test NAME RANKS EXPECTED ENVIRONMENT)
    add_test(NAME ${NAME} COMMAND ${MPIEXEC_EXECUTABLE} --quiet -n ${RANKS} $<TARGET_FILE:comm_driver> ${ARGN})
    set_tests_properties(${NAME} PROPERTIES PASS_REGULAR_EXPRESSION "${EXPECTED}" TIMEOUT 60
                         ENVIRONMENT "${RUN_ENVIRONMENT};${ENVIRONMENT}")
  endfunction()
  foreach(RANKS 1 2 3)
    ranks_test(comm_device_${RANKS} ${RANKS} "^right\n$" "CUDAHOST_SEED=${RANKS}")
  endforeach()
  if(CUDA STREQUAL "HOST")
    ranks_test(comm_alone 3 "^cnnscope: NCCL: an all-gather failed on rank 0 [^\n]*\n$" "CUDAHOST_NCCL_PATIENCE=2" alone)
    ranks_test(comm_silent 3 "^cnnscope: NCCL: an all-gather failed on rank 0 .no word from another rank for 2 s[^\n]*\n$"
               "CUDAHOST_NCCL_PATIENCE=1000" silent)
    ranks_test(comm_differ 2 "cudahost: rank . is in collective" "CUDAHOST_SEED=1" differ)
    ranks_test(comm_no_device 2 "^cnnscope: GPU: none is visible[^\n]*--gpus-per-task=1[^\n]*\n$" "CUDAHOST_DEVICES=0")
    ranks_test(comm_one_device 2 "^cnnscope: GPU: ranks 0 and 1 [^\n]*--gpus-per-task=1[^\n]*\n$" "CUDAHOST_DEVICES=1")
    ranks_test(comm_few_devices 3 "^cnnscope: GPU: 3 ranks on a node of 2 [^\n]*--ntasks-per-node=2[^\n]*\n$"
               "CUDAHOST_DEVICES=2")
    ranks_test(comm_old_driver 2 "^cnnscope: GPU: the driver is older[^\n]*\n$" "CUDAHOST_DRIVER=old")
  endif()
endif()
if(NOT TARGET cnnscope)
  return()
endif()
find_program(PYTHON python3 PATHS ${CMAKE_SOURCE_DIR}/.venv/bin NO_DEFAULT_PATH)

# The program on the GPU, or on the host executor, beside the CPU build's that CNNSCOPE_BIN names (build/cnnscope).
if(CUDA)
  if(PYTHON AND NOT SANITIZE)
    add_test(NAME program COMMAND ${PYTHON} -m pytest -q -rs --no-header --durations=5 tests/test_cuda.py
             WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(program PROPERTIES ENVIRONMENT CNNSCOPE_CUDA_BIN=${CMAKE_BINARY_DIR}/cnnscope TIMEOUT 3600)
    if(CUDA STREQUAL "HOST")
      add_test(NAME gpus COMMAND ${PYTHON} -m pytest -q -rs --no-header tests/test_gpus.py
               WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
      set_tests_properties(gpus PROPERTIES ENVIRONMENT CNNSCOPE_CUDA_BIN=${CMAKE_BINARY_DIR}/cnnscope TIMEOUT 600
                           SKIP_RETURN_CODE 5) # pytest's, where no Slurm cluster can be made
    endif()
  endif()
  return()
endif()

# Runs one stage on a matrix, for the Python tests that compare it with scikit-learn.
add_executable(tsne_driver tests/tsne_driver.c)
target_link_libraries(tsne_driver PRIVATE core)

# Preloaded by tests of what happens when a disk fails.
add_library(faults MODULE tests/faults.c)
target_link_libraries(faults PRIVATE ${CMAKE_DL_LIBS})

# Times every kernel, by the tables of test_kernels and test_ops, against what this machine could do; no test.
add_executable(bench_kernels tests/bench_kernels.c tests/bench_ops.c tests/bench_rest.c tests/bench_maps.c)
target_compile_options(bench_kernels PRIVATE -O3 -march=native)
target_link_libraries(bench_kernels PRIVATE core ref)

# All Python files in one run, so that they share the demo's result. Those that run the program do so in this build.
if(PYTHON AND NOT SANITIZE)
  add_test(NAME python COMMAND ${PYTHON} -m pytest -q -rs --no-header --durations=10 tests WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(python PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 3600)
elseif(NOT SANITIZE)
  message(STATUS "No .venv (scripts/setup.sh makes it): the tests written in Python are left out")
endif()

# The parsers under libFuzzer (tests/fuzz.c), built by clang in one go, whatever compiles the rest. The kernels, which
# only lend their names here, are taken as they are.
find_program(CLANG clang)
if(CLANG)
  execute_process(COMMAND sh -c "echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
                                 ${CLANG} -fsanitize=fuzzer,address -x c - -o /dev/null"
                  RESULT_VARIABLE NO_FUZZER OUTPUT_QUIET ERROR_QUIET)
endif()
if(CLANG AND NOT NO_FUZZER AND ONNX_GENERATED AND NOT SANITIZE)
  set(FUZZ_SOURCES ${CORE_SOURCES})
  list(FILTER FUZZ_SOURCES INCLUDE REGEX
       "/(arena|error|watchdog|sha256|options|model|graph|plan|pickle|pth|safetensors|state|dataset|onnx|checkpoint|record)[a-z_]*(\\.pb-c)?\\.c$")
  add_custom_command(
    OUTPUT fuzz
    COMMAND ${CLANG} -g -O1 -w -Werror=implicit-function-declaration -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -D_GNU_SOURCE
            -I${CMAKE_SOURCE_DIR}/src -I${CMAKE_SOURCE_DIR}/kernels -I${ONNX_GENERATED} -I${NETCDF_INCLUDE_DIR}
            "-I$<JOIN:${MPI_C_INCLUDE_DIRS},;-I>" ${LIBZIP_CFLAGS} ${PROTOBUF_C_CFLAGS}
            ${CMAKE_SOURCE_DIR}/tests/fuzz.c ${FUZZ_SOURCES} $<TARGET_FILE:kernels> ${NETCDF_LIBRARY}
            ${LIBZIP_LDFLAGS} ${PROTOBUF_C_LDFLAGS} ${ZLIB_LIBRARIES} ${OPENSSL_CRYPTO_LIBRARY} ${DNNL_LIBRARY}
            ${OPENBLAS_LIBRARY} ${LAPACKE_LIBRARY} ${OpenMP_gomp_LIBRARY} -lm -o fuzz
    DEPENDS kernels tests/fuzz.c ${FUZZ_SOURCES} COMMAND_EXPAND_LISTS VERBATIM)
  add_custom_target(fuzzers ALL DEPENDS fuzz)
  add_test(NAME fuzz COMMAND scripts/fuzz.sh 0.01 WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(fuzz PROPERTIES ENVIRONMENT "${RUN_ENVIRONMENT}" TIMEOUT 300)
endif()

# The CUDA build where there is no GPU: its kernels by nvcc, and executed on the host. Each says "skipped" where NVIDIA's
# compiler or headers are not. All orders, the race detector and coverage, without `quick`, take a quarter of an hour.
if(NOT SANITIZE)
  add_test(NAME cuda_compile COMMAND scripts/cuda-compile.sh WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  add_test(NAME cuda_host COMMAND scripts/cuda-host.sh ${CMAKE_BINARY_DIR} quick WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(cuda_compile cuda_host PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 1800 RUN_SERIAL ON)
endif()
