# kernels, from the CUDA sources by the host compiler; and the executor's own tests. CUDAHOST_RACES watches every access
# of a kernel (races.cpp); SANITIZE works as for the rest.
option(CUDAHOST_RACES "Host executor: with the race detector" OFF)
enable_language(CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g")

# NVIDIA's headers: of a toolkit, or of the wheels that scripts/setup.sh fetches.
find_path(CUDA_INCLUDE_DIR cuda_runtime.h REQUIRED HINTS $ENV{CUDA_HOME} /usr/local/cuda ${CMAKE_SOURCE_DIR}/.venv/cuda
          PATH_SUFFIXES include)

# Makes sources CUDA ones: cudahost.h stands in front, and their memory accesses are watched where that is asked for.
function(cudahost_sources)
  # "#pragma unroll" is for nvcc; and what one thread leaves unset without using it, gcc may warn of.
  set(OPTIONS "-x;c++;-include;${CMAKE_SOURCE_DIR}/tests/cudahost/cudahost.h;-Wno-unknown-pragmas;-Wno-maybe-uninitialized")
  if(CUDAHOST_RACES)
    list(APPEND OPTIONS -fsanitize=thread)
  endif()
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${OPTIONS}")
endfunction()

set(EXECUTOR tests/cudahost/blocks.cpp tests/cudahost/runtime.cpp tests/cudahost/races.cpp)
if(CUDAHOST_RACES)
  set_source_files_properties(tests/cudahost/races.cpp PROPERTIES COMPILE_DEFINITIONS CUDAHOST_RACES)
endif()
cudahost_sources(${CUDA_SOURCES})
add_library(kernels STATIC ${CUDA_SOURCES} ${EXECUTOR} ${SHARED_SOURCES})
target_include_directories(kernels PRIVATE tests/cudahost)
target_include_directories(kernels SYSTEM PUBLIC ${CUDA_INCLUDE_DIR})
target_link_libraries(kernels PUBLIC ${CMAKE_DL_LIBS})

if(NOT KERNELS_ONLY)
  find_package(MPI REQUIRED COMPONENTS C)
  find_path(NCCL_INCLUDE_DIR nccl.h REQUIRED HINTS ${CUDA_INCLUDE_DIR} ${CMAKE_SOURCE_DIR}/.venv/cuda/include)
  add_library(nccl_device STATIC tests/cudahost/nccl.cpp)
  target_include_directories(nccl_device PRIVATE tests/cudahost)
  target_include_directories(nccl_device SYSTEM PUBLIC ${NCCL_INCLUDE_DIR} ${CUDA_INCLUDE_DIR})
  target_compile_definitions(nccl_device PRIVATE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
  target_link_libraries(nccl_device PRIVATE kernels MPI::MPI_C)
endif()
