# The kernels on NVIDIA GPUs (CUDA=ON), or the same sources on the host executor (CUDA=HOST).
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)

if(CUDA STREQUAL "HOST")
  include(tests/cudahost/cudahost.cmake)
else()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90) # A100, H100; CMake's usual variable chooses others
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit 12 REQUIRED)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -lineinfo")
  add_library(kernels STATIC ${CUDA_SOURCES} kernels/dense.c)
  target_compile_options(kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-fopenmp>)
  if(WARNINGS_AS_ERRORS)
    target_compile_options(kernels PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>")
  endif()
  target_link_libraries(kernels PRIVATE CUDA::cudart CUDA::cublas)
  if(NOT KERNELS_ONLY)
    find_path(NCCL_INCLUDE_DIR nccl.h REQUIRED HINTS $ENV{NCCL_ROOT} $ENV{NCCL_HOME} ${CUDAToolkit_INCLUDE_DIRS}
              PATH_SUFFIXES include)
    find_library(NCCL_LIBRARY nccl REQUIRED HINTS $ENV{NCCL_ROOT} $ENV{NCCL_HOME} ${CUDAToolkit_LIBRARY_DIR}
                 PATH_SUFFIXES lib lib64)
    add_library(nccl_device INTERFACE)
    target_include_directories(nccl_device SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
    target_link_libraries(nccl_device INTERFACE ${NCCL_LIBRARY} CUDA::cudart)
  endif()
endif()
