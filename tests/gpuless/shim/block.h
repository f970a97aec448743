// The threads of a CUDA block on the CPU, their barriers, and the launch of a grid. Part of cuemu.h.
//
// By default the threads are fibers of one thread of the system, which take turns at barriers; CUEMU_SEED=n in the
// environment shuffles their turns. With -DCUEMU_OS_THREADS each is a thread of the system, so that ThreadSanitizer
// sees what is shared without a barrier, in whatever order the threads ran. Blocks run one after another.
#pragma once

#include <vector_types.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#ifdef CUEMU_OS_THREADS
#include <pthread.h>
#else
#include <ucontext.h>
#endif

namespace cuemu {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kStackBytes = 256 << 10;  // sanitizers have large frames

[[noreturn]] inline void die(const char* message) {
  std::fprintf(stderr, "cuemu: %s\n", message);
  std::abort();
}

// What the lanes of a warp exchange. Collectives alternate between two buffers, so that a fast lane cannot overwrite
// what a slow one still reads.
struct Exchange {
  unsigned number[32];  // of the collective that a lane takes part in, counted from its start
  uint64_t value[32];
  const void* address[32];
  uint32_t fragment[32][8];
};

struct Warp {
  unsigned lanes;
  Exchange exchange[2];
#ifdef CUEMU_OS_THREADS
  pthread_barrier_t barrier;
#else
  struct Group {  // lanes that meet under one mask
    unsigned mask, arrived = 0, opened = 0;
  };
  std::deque<Group> groups;  // the places of its elements stay when it grows
#endif
};

// An asynchronous copy: `bytes` of the `size` that it fills, the others being zero.
struct Copy {
  void* target;
  const void* source;
  int size, bytes;
};

struct Thread {
  dim3 index;
  unsigned lane = 0;
  unsigned collectives = 0;
  Warp* warp = nullptr;
  std::vector<Copy> open;                 // not committed
  std::deque<std::vector<Copy>> pending;  // committed groups that nobody has waited for
#ifndef CUEMU_OS_THREADS
  ucontext_t context;
  bool done = false;
  const unsigned* awaited = nullptr;  // runs on when this counter is no longer `seen`
  unsigned seen = 0;
#endif
};

inline thread_local Thread* current = nullptr;
inline dim3 block_index, block_size, grid_size;
inline std::unique_ptr<unsigned char[]> shared_memory;  // what is dynamic of it

#ifdef CUEMU_OS_THREADS

inline pthread_barrier_t block_barrier;

inline void sync_block() {
  pthread_barrier_wait(&block_barrier);
}

inline void sync_warp(unsigned mask) {
  if (mask != kAllLanes) die("threads of the system know no warps in part");
  pthread_barrier_wait(&current->warp->barrier);
}

inline void run_block(std::vector<Thread>& threads, std::vector<Warp>& warps, const std::function<void()>& body) {
  pthread_barrier_init(&block_barrier, nullptr, threads.size());
  for (Warp& warp : warps) pthread_barrier_init(&warp.barrier, nullptr, warp.lanes);
  std::vector<std::thread> running;
  for (Thread& thread : threads) {
    running.emplace_back([&thread, &body] {
      current = &thread;
      body();
    });
  }
  for (std::thread& one : running) one.join();
  for (Warp& warp : warps) pthread_barrier_destroy(&warp.barrier);
  pthread_barrier_destroy(&block_barrier);
}

#else

inline ucontext_t scheduler;
inline const std::function<void()>* kernel;
inline unsigned arrived, opened, alive;  // at the barrier of the block, how often it has opened, and its threads

inline void yield_until_changed(const unsigned* counter, unsigned seen) {
  current->awaited = counter;
  current->seen = seen;
  swapcontext(&current->context, &scheduler);
}

inline void open_block_barrier_if_full() {
  if (alive == 0 || arrived != alive) return;
  arrived = 0;
  ++opened;
}

inline void sync_block() {
  const unsigned seen = opened;
  ++arrived;
  open_block_barrier_if_full();
  if (opened == seen) yield_until_changed(&opened, seen);
}

inline void sync_warp(unsigned mask) {
  if (!(mask >> current->lane & 1)) die("a lane is not in the mask of its own collective");
  auto& groups = current->warp->groups;
  auto group = std::find_if(groups.begin(), groups.end(), [&](const Warp::Group& one) { return one.mask == mask; });
  if (group == groups.end()) group = groups.insert(groups.end(), Warp::Group{mask});
  const unsigned seen = group->opened;
  if (++group->arrived == static_cast<unsigned>(__builtin_popcount(mask))) {
    group->arrived = 0;
    ++group->opened;
  } else {
    yield_until_changed(&group->opened, seen);
  }
}

inline void start_of_fiber() {
  (*kernel)();
  current->done = true;
}

// Lets every thread run once that can; whether any could.
inline bool run_round(std::vector<Thread>& threads, const std::vector<unsigned>& order) {
  bool moved = false;
  for (const unsigned i : order) {
    Thread& thread = threads[i];
    if (thread.done || (thread.awaited != nullptr && *thread.awaited == thread.seen)) continue;
    thread.awaited = nullptr;
    current = &thread;
    swapcontext(&scheduler, &thread.context);
    moved = true;
    if (thread.done) {
      --alive;
      open_block_barrier_if_full();
    }
  }
  return moved;
}

inline void run_block(std::vector<Thread>& threads, std::vector<Warp>&, const std::function<void()>& body) {
  static const char* seed = std::getenv("CUEMU_SEED");
  static std::mt19937 random(seed != nullptr ? std::atoi(seed) : 0);
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < threads.size()) stacks.emplace_back(new char[kStackBytes]);
  kernel = &body;
  arrived = opened = 0;
  alive = static_cast<unsigned>(threads.size());
  std::vector<unsigned> order(threads.size());
  for (unsigned i = 0; i < threads.size(); ++i) {
    order[i] = i;
    getcontext(&threads[i].context);
    threads[i].context.uc_stack.ss_sp = stacks[i].get();
    threads[i].context.uc_stack.ss_size = kStackBytes;
    threads[i].context.uc_link = &scheduler;
    makecontext(&threads[i].context, start_of_fiber, 0);
  }
  while (alive > 0) {
    if (seed != nullptr) std::shuffle(order.begin(), order.end(), random);
    if (!run_round(threads, order)) die("deadlock: a barrier or a collective that not all of its threads reach");
  }
}

#endif

// Runs `body` as every thread of every block. Dynamic shared memory starts as NaN and the largest unsigned numbers.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  grid_size = grid;
  block_size = block;
  const unsigned count = block.x * block.y * block.z;
  if (count == 0 || count > 1024) die("a block has 1 to 1024 threads");
  for (uint64_t b = 0; b < uint64_t{grid.x} * grid.y * grid.z; ++b) {
    block_index = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    shared_memory.reset(new unsigned char[shared_bytes]);
    std::fill_n(shared_memory.get(), shared_bytes, 0xFF);
    std::vector<Warp> warps((count + 31) / 32);
    std::vector<Thread> threads(count);
    for (unsigned i = 0; i < count; ++i) {
      threads[i].index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
      threads[i].lane = i % 32;
      threads[i].warp = &warps[i / 32];
      warps[i / 32].lanes = i % 32 + 1;
    }
    run_block(threads, warps, body);
    for (const Thread& thread : threads) {
      const bool landed = std::all_of(thread.pending.begin(), thread.pending.end(), [](auto& g) { return g.empty(); });
      if (!landed || !thread.open.empty()) die("an asynchronous copy that nobody waits for");
    }
  }
}

// Every collective: fill the own entries of `begin_collective()`, meet, then read those of the others.
inline Exchange& begin_collective() {
  Exchange& exchange = current->warp->exchange[current->collectives % 2];
  exchange.number[current->lane] = ++current->collectives;
  return exchange;
}

inline void meet(unsigned mask, const Exchange& exchange) {
  sync_warp(mask);
  for (unsigned lane = 0; lane < current->warp->lanes; ++lane) {
    if ((mask >> lane & 1) && exchange.number[lane] != current->collectives)
      die("lanes of one collective took part in different numbers of them before: not emulated");
  }
}

}  // namespace cuemu
