//! Discogs dumps to RabbitMQ. See `extractor --help`.

fn main() -> std::process::ExitCode {
    extractor::cli::main()
}
