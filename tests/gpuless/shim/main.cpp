// The program around a driver: reads its arguments from a file, runs it, writes the buffers back.
//
// The file holds 64-bit words: the number of arguments; for each its kind, then for a buffer the bytes of its storage,
// where it starts in it (-1: it is null) and the bytes themselves, filled up to whole words, else the number's bits.
#include "main.h"

#include <cstdio>
#include <cstdlib>

namespace {

constexpr size_t kAlignment = 256;  // as allocators of GPUs have it

uint64_t read_word(std::FILE* file) {
  uint64_t word = 0;
  if (std::fread(&word, sizeof word, 1, file) != 1) std::exit(3);
  return word;
}

void* read_storage(std::FILE* file, size_t bytes) {
  void* storage = nullptr;
  if (posix_memalign(&storage, kAlignment, bytes) != 0) std::exit(3);
  if (std::fread(storage, 1, bytes, file) != bytes) std::exit(3);
  std::fseek(file, static_cast<long>((8 - bytes % 8) % 8), SEEK_CUR);
  return storage;
}

}  // namespace

int main(int count, char** names) {
  std::FILE* file = count == 3 ? std::fopen(names[1], "rb") : nullptr;
  if (file == nullptr) return 3;
  cuemu::Arguments arguments(read_word(file));
  for (cuemu::Argument& one : arguments.all) {
    one.is_buffer = read_word(file) != 0;
    one.word = read_word(file);
    if (!one.is_buffer) continue;
    const int64_t start = static_cast<int64_t>(read_word(file));
    one.storage = read_storage(file, one.word);
    one.start = start < 0 ? nullptr : static_cast<char*>(one.storage) + start;
  }
  std::fclose(file);
  run(arguments);
  file = std::fopen(names[2], "wb");
  for (const cuemu::Argument& one : arguments.all) {
    if (one.is_buffer) std::fwrite(one.storage, 1, one.word, file);
    std::free(one.storage);
  }
  return std::fclose(file);
}
