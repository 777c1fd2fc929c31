# LibTorch as the imported target kktorch::torch.
#
# Not find_package(Torch): with a CUDA wheel that insists on a CUDA toolkit at configure time, which a machine
# without nvcc does not have. The library is found in this order:
#   KKTORCH_TORCH_DIR   a LibTorch folder (holding include/ and lib/): the `torch` folder of a wheel or an unpacked zip
#   python -c "import torch"   with Python3_EXECUTABLE, or the python3 on PATH
if(NOT KKTORCH_TORCH_DIR)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_Interpreter_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE kktorch_found_torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT kktorch_found_torch)
    message(FATAL_ERROR "kktorch: expected LibTorch in KKTORCH_TORCH_DIR or `import torch` in ${Python3_EXECUTABLE}, "
                        "but got neither. Install torch with pip, or pass -DKKTORCH_TORCH_DIR=<folder with include/ and lib/>.")
  endif()
  set(KKTORCH_TORCH_DIR ${kktorch_found_torch} CACHE PATH "LibTorch folder (holding include/ and lib/)" FORCE)
endif()

set(kktorch_torch_lib ${KKTORCH_TORCH_DIR}/lib)
set(kktorch_torch_include ${KKTORCH_TORCH_DIR}/include)
foreach(file ${kktorch_torch_lib}/libtorch_cpu.so ${kktorch_torch_lib}/libc10.so
             ${kktorch_torch_include}/torch/headeronly/version.h)
  if(NOT EXISTS ${file})
    message(FATAL_ERROR "kktorch: expected LibTorch 2.11 or newer in KKTORCH_TORCH_DIR=${KKTORCH_TORCH_DIR}, "
                        "but ${file} does not exist")
  endif()
endforeach()

file(STRINGS ${kktorch_torch_include}/torch/headeronly/version.h kktorch_version_lines
     REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]" "" kktorch_version_numbers "${kktorch_version_lines}")
list(JOIN kktorch_version_numbers "." KKTORCH_TORCH_VERSION)
if(KKTORCH_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "kktorch: expected LibTorch >= 2.11, but got ${KKTORCH_TORCH_VERSION} in ${KKTORCH_TORCH_DIR}")
endif()
if(EXISTS ${kktorch_torch_lib}/libtorch_cuda.so)
  set(KKTORCH_TORCH_HAS_CUDA TRUE)
else()
  set(KKTORCH_TORCH_HAS_CUDA FALSE)
endif()

find_package(Threads REQUIRED)

if(NOT TARGET kktorch::torch)
  add_library(kktorch::torch INTERFACE IMPORTED GLOBAL)
  target_include_directories(kktorch::torch SYSTEM INTERFACE
                             ${kktorch_torch_include} ${kktorch_torch_include}/torch/csrc/api/include)
  # at::parallel_for is OpenMP code in LibTorch's headers. By flag: FindOpenMP names one libgomp by its full path, and
  # LibTorch brings its own.
  target_compile_options(kktorch::torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_options(kktorch::torch INTERFACE -fopenmp)
  # Registrations in a library vanish silently when the linker drops it: keep what nothing references.
  # Symbols that a wheel's own dependencies resolve at load time (NCCL) are none of our link's business.
  target_link_options(kktorch::torch INTERFACE LINKER:--unresolved-symbols=ignore-in-shared-libs
                      LINKER:-rpath,${kktorch_torch_lib})
  target_link_libraries(kktorch::torch INTERFACE ${kktorch_torch_lib}/libtorch_cpu.so ${kktorch_torch_lib}/libc10.so Threads::Threads)
  # Loaded for what they register, and for the code inside AOTInductor packages, although nothing refers to them.
  set(kktorch_torch_registrations ${kktorch_torch_lib}/libtorch.so)
  if(KKTORCH_TORCH_HAS_CUDA)
    string(APPEND kktorch_torch_registrations " ${kktorch_torch_lib}/libtorch_cuda.so ${kktorch_torch_lib}/libc10_cuda.so")
  endif()
  target_link_libraries(kktorch::torch INTERFACE
    "-Wl,--push-state,--no-as-needed ${kktorch_torch_registrations} -Wl,--pop-state")
  # The C++ ABI of the old wheels is gone since 2.7; nothing to define for _GLIBCXX_USE_CXX11_ABI.
endif()
message(STATUS "kktorch: LibTorch ${KKTORCH_TORCH_VERSION} in ${KKTORCH_TORCH_DIR}")
