// The launcher XATTR_OPERATOR of kernels/cuda, which XATTR_HEADER holds. Under g++ it runs its kernels on the CPU (see
// `shim`) or, with XATTR_RECORD, writes into the last argument what it would launch; nvcc compiles its kernels.
#ifndef __CUDACC__
#include "main.h"
#ifdef XATTR_RECORD
#include "recorder.h"
#define XATTR_LAUNCH(kernel, grid, block, shared, stream, ...) \
  cuemu::Recorder::instance().launch(kernel, grid, block, shared, __VA_ARGS__)
#else
#define XATTR_LAUNCH(kernel, grid, block, shared, stream, ...) \
  cuemu::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); })
#endif
#endif

#include <tuple>

#include XATTR_HEADER

constexpr auto kLauncher = &xattr::cuda::XATTR_OPERATOR;

#ifdef __CUDACC__

auto launcher = kLauncher;  // what is pointed to is compiled

#else

namespace {

// The arguments in their order, each as its parameter wants it.
struct Reader {
  const cuemu::Arguments& arguments;
  int next = 0;

  template <typename T>
  T take() {
    if constexpr (std::is_same_v<T, cudaStream_t>) {
      return nullptr;
    } else if constexpr (std::is_pointer_v<T>) {
      using Value = std::remove_pointer_t<T>;
      return arguments.pointer<Value>(next++);
    } else {
      return static_cast<T>(arguments.integer(next++));
    }
  }
};

template <typename... Parameters>
void call(void (*launcher)(Parameters...), Reader reader) {
  std::tuple<Parameters...> values{reader.take<Parameters>()...};  // braces: from left to right
  std::apply(launcher, values);
}

}  // namespace

// The arguments are those of the launcher but for the stream.
void run(const cuemu::Arguments& arguments) {
#ifdef XATTR_RECORD
  cuemu::Recorder::instance().given = &arguments;
#endif
  call(kLauncher, Reader{arguments});
#ifdef XATTR_RECORD
  const std::string& text = cuemu::Recorder::instance().text;
  const cuemu::Argument& last = arguments.all.back();
  if (text.size() >= last.word) cuemu::die("no room for what was launched");
  std::memcpy(last.storage, text.c_str(), text.size() + 1);
#endif
}

#endif
