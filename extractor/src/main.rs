//! Discogs dumps to RabbitMQ. See `extractor --help`.

use mimalloc::MiMalloc;

/// Bodies are made in one thread and freed in another, which the C library's allocator is slow at: see docs/PERFORMANCE_IMPROVEMENTS.md.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> std::process::ExitCode {
    extractor::cli::main()
}
