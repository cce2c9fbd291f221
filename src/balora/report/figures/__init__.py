"""One file per kind of figure; `balora.report.style` has their colours, legend and file formats."""
