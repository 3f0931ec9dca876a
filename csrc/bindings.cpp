// Python bindings of the CPU backend: raw addresses and sizes, no torch headers. The GIL is released around every loop.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) { m.doc() = "CPU kernels of fastmerge."; }
