// Errors of this runtime: kind "RocmError", whose message is one sentence for the person at the terminal.
#ifndef MLCRT_ROCM_ERROR_H_
#define MLCRT_ROCM_ERROR_H_

#include <tvm/ffi/error.h>

// Without a backtrace: it would say where in this library, which helps nobody whose GPU memory is full.
#define MLCRT_ROCM_THROW ::tvm::ffi::detail::ErrorBuilder("RocmError", "", false).stream()

#endif  // MLCRT_ROCM_ERROR_H_
