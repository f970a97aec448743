// Which calls the kernels of kernels/cuda take, and where all others go.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace xattr {

// The toolkit that compiled the kernels, and the architectures that it did for.
std::string cuda_build();

// Whether the kernels are to be used at all: off while another back end is forced; and whether they are forced
// themselves, so that they run where something else is faster.
void set_cuda_kernels(bool on, bool forced);
bool cuda_kernels_forced();

// Whether this library holds code for a device: it may have been built for others.
bool has_cuda_code(at::Device device);

// Whether they take tensors of this dtype on this device, and are to be used.
bool cuda_kernels_serve(at::ScalarType dtype, at::Device device);

inline bool cuda_kernels_serve(const at::Tensor& t) {
  return cuda_kernels_serve(t.scalar_type(), t.device());
}

// Whether they take a perceptron with these weights, which have two dimensions each.
bool perceptron_kernels_serve(at::TensorList weights);

// The layer below: the same operator as xattr_cuda/ops/gpu.py runs it, on Triton or on the reference.
template <typename Signature>
c10::TypedOperatorHandle<Signature> layer_below(const char* op) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string("xattr_below::") + op).c_str(), "")
      .typed<Signature>();
}

}  // namespace xattr
