// Executes one call of a function one instruction at a time, in its own process, and counts where. x86-64 Linux.
//
// A breakpoint at the function's first instruction begins it: from there on the trap flag makes the processor raise
// SIGTRAP before every instruction, until the function has returned. All else runs at full speed.
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>

namespace {

constexpr unsigned char kBreakpoint = 0xCC;
constexpr greg_t kTrapFlag = 0x100;

enum State : int { kIdle = 0, kArmed = 1, kStepping = 2, kReturned = 3 };
volatile State state = kIdle;

unsigned char* entry;
unsigned char replaced;
greg_t stack_at_entry;
std::uint32_t* counts;
std::uintptr_t code_begin;
std::size_t code_size;
struct sigaction before;

void on_trap(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  if (state == kArmed && registers[REG_RIP] == reinterpret_cast<greg_t>(entry + 1)) {
    *entry = replaced;
    registers[REG_RIP] -= 1;
    registers[REG_EFL] |= kTrapFlag;
    stack_at_entry = registers[REG_RSP];
    state = kStepping;
  } else if (state == kStepping && registers[REG_RSP] > stack_at_entry) {
    registers[REG_EFL] &= ~kTrapFlag;
    state = kReturned;
    return;
  }
  const std::uintptr_t at = static_cast<std::uintptr_t>(registers[REG_RIP]) - code_begin;
  if (at < code_size) ++counts[at];
}

}  // namespace

// The next call of `function` adds to counts[i] how often it executes an instruction at begin + i, 0 <= i < size.
// Returns whether a breakpoint could be set.
extern "C" bool arm(void* function, std::uint32_t* table, std::uintptr_t begin, std::size_t size) {
  entry = static_cast<unsigned char*>(function);
  counts = table;
  code_begin = begin;
  code_size = size;
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  void* const start = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(function) / page * page);
  if (mprotect(start, page, PROT_READ | PROT_WRITE | PROT_EXEC)) return false;
  struct sigaction now = {};
  now.sa_sigaction = on_trap;
  now.sa_flags = SA_SIGINFO;
  sigaction(SIGTRAP, &now, &before);
  replaced = *entry;
  state = kArmed;
  *entry = kBreakpoint;
  return true;
}

// Undoes the above, and returns how far a call came meanwhile.
extern "C" int disarm() {
  if (state == kArmed) *entry = replaced;
  sigaction(SIGTRAP, &before, nullptr);
  const int reached = state;
  state = kIdle;
  return reached;
}
