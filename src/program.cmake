# The program and what it needs besides its kernels.
find_package(MPI REQUIRED COMPONENTS C)
need_version("The MPI standard" "${MPI_C_VERSION}" 3.0 "${MPI_C_COMPILER}") # Open MPI 3, MPICH 3
find_package(ZLIB 1.2.11 REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenSSL 1.1.1 REQUIRED COMPONENTS Crypto)
pkg_check_modules(LIBZIP REQUIRED IMPORTED_TARGET libzip>=1.5)

# A netCDF-C with nc_create_par. Debian puts it beside the serial one: library netcdf_mpi, headers in a folder that
# neither its pkg-config file nor its CMake config names; HPC sites have one netcdf built on parallel HDF5.
find_path(NETCDF_INCLUDE_DIR netcdf_par.h REQUIRED HINTS $ENV{NETCDF_ROOT} $ENV{NETCDF_DIR} PATH_SUFFIXES include
          PATHS /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/netcdf/mpi/include)
find_library(NETCDF_LIBRARY NAMES netcdf_mpi netcdf REQUIRED HINTS $ENV{NETCDF_ROOT} $ENV{NETCDF_DIR}
             PATH_SUFFIXES lib lib64)
file(STRINGS ${NETCDF_INCLUDE_DIR}/netcdf_meta.h NETCDF_PARALLEL REGEX "define NC_HAS_PARALLEL4 +1")
if(NOT NETCDF_PARALLEL)
  message(FATAL_ERROR "${NETCDF_LIBRARY} cannot write in parallel; a netCDF-C built with parallel HDF5 is needed "
                      "(Debian: libnetcdf-mpi-dev; HPC: load such a module, or set NETCDF_ROOT)")
endif()

header_version(NETCDF_VERSION ${NETCDF_INCLUDE_DIR}/netcdf_meta.h NC_VERSION)
need_version(netCDF-C "${NETCDF_VERSION}" 4.7.4 ${NETCDF_LIBRARY}) # compressed variables in parallel
find_path(HDF5_INCLUDE_DIR H5public.h HINTS $ENV{HDF5_ROOT} $ENV{HDF5_DIR} PATH_SUFFIXES include
          PATHS /usr/include/hdf5/openmpi ${NETCDF_INCLUDE_DIR})
header_version(HDF5_VERSION ${HDF5_INCLUDE_DIR}/H5public.h H5_VERS)
need_version(HDF5 "${HDF5_VERSION}" 1.10.3 "${HDF5_INCLUDE_DIR}")

# ONNX: protobuf-c, and the onnx.proto of the ONNX package, from which the parser is generated. Without them the program
# is built all the same, and says so when it is given an .onnx file.
pkg_check_modules(PROTOBUF_C IMPORTED_TARGET libprotobuf-c>=1.3)
find_program(PROTOC_C protoc-c)
find_path(ONNX_PROTO_DIR onnx/onnx.proto)

file(GLOB CORE_SOURCES CONFIGURE_DEPENDS src/*.c)
list(REMOVE_ITEM CORE_SOURCES ${CMAKE_SOURCE_DIR}/src/main.c)
if(CUDA)
  list(REMOVE_ITEM CORE_SOURCES ${CMAKE_SOURCE_DIR}/src/comm_mpi.c)
else()
  list(REMOVE_ITEM CORE_SOURCES ${CMAKE_SOURCE_DIR}/src/comm_nccl.c)
endif()
if(PROTOBUF_C_FOUND AND PROTOC_C AND ONNX_PROTO_DIR)
  set(ONNX_GENERATED ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${ONNX_GENERATED})
  add_custom_command(OUTPUT ${ONNX_GENERATED}/onnx.pb-c.c ${ONNX_GENERATED}/onnx.pb-c.h
                     COMMAND ${PROTOC_C} --proto_path=${ONNX_PROTO_DIR}/onnx --c_out=${ONNX_GENERATED} onnx.proto
                     DEPENDS ${ONNX_PROTO_DIR}/onnx/onnx.proto VERBATIM)
  set_source_files_properties(${ONNX_GENERATED}/onnx.pb-c.c PROPERTIES COMPILE_OPTIONS -w)
  list(REMOVE_ITEM CORE_SOURCES ${CMAKE_SOURCE_DIR}/src/onnx_absent.c)
  list(APPEND CORE_SOURCES ${ONNX_GENERATED}/onnx.pb-c.c ${ONNX_GENERATED}/onnx.pb-c.h)
else()
  message(STATUS "No protobuf-c, protoc-c or onnx/onnx.proto: built without ONNX")
  file(GLOB ONNX_SOURCES src/onnx.c src/onnx_*.c)
  list(REMOVE_ITEM ONNX_SOURCES ${CMAKE_SOURCE_DIR}/src/onnx_absent.c)
  list(REMOVE_ITEM CORE_SOURCES ${ONNX_SOURCES})
endif()
add_library(core STATIC ${CORE_SOURCES})
target_include_directories(core PUBLIC src PRIVATE ${NETCDF_INCLUDE_DIR})
if(CUDA)
  target_link_libraries(core PRIVATE nccl_device)
endif()
target_link_libraries(core PUBLIC kernels PRIVATE MPI::MPI_C ${NETCDF_LIBRARY} PkgConfig::LIBZIP ZLIB::ZLIB
                      OpenSSL::Crypto Threads::Threads m)
if(ONNX_GENERATED)
  target_include_directories(core PUBLIC ${ONNX_GENERATED})
  target_link_libraries(core PUBLIC PkgConfig::PROTOBUF_C)
endif()

if(NOT CUDA OR EXISTS ${CMAKE_SOURCE_DIR}/kernels/cuda/tsne.cu) # the CUDA kernels of t-SNE are still to come
  add_executable(cnnscope src/main.c)
  target_link_libraries(cnnscope PRIVATE core)
  install(TARGETS cnnscope RUNTIME DESTINATION bin)
  install(PROGRAMS scripts/submit.sh scripts/plot.py scripts/report.py scripts/export.py scripts/pack.py
          scripts/export_onnx.py DESTINATION share/cnnscope/scripts)
  install(FILES scripts/cnnscope.py scripts/pack_archives.py scripts/pack_file.py scripts/pack_pixels.py
          scripts/pack_sources.py scripts/plot_samples.py scripts/python_object.py scripts/report_data.py
          scripts/report_sections.py scripts/report.html scripts/report.css scripts/report.js scripts/report_panel.js
          scripts/requirements.txt
          DESTINATION share/cnnscope/scripts)
  install(DIRECTORY slurm DESTINATION share/cnnscope)
endif()
