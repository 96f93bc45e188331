//! Packing of message bodies.

use std::io::{self, Write};

use flate2::write::GzEncoder;

/// How message bodies are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878; smaller and faster.
    Zstd,
}

impl Compression {
    /// The AMQP property that tells the workers. Bodies that are not packed have what the contract says (§2.1).
    pub fn content_encoding(self) -> &'static str {
        match self {
            Compression::None => "UTF-8",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }

    /// Packs a body.
    ///
    /// # Errors
    /// [`io::Error`] of the compressor.
    pub fn pack(self, body: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Compression::None => Ok(body),
            Compression::Gzip => {
                let mut out = GzEncoder::new(Vec::with_capacity(body.len() / 2), flate2::Compression::fast());
                out.write_all(&body)?;
                out.finish()
            }
            Compression::Zstd => zstd::bulk::compress(&body, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }
}
