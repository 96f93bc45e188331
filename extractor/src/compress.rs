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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_packed_can_be_unpacked() {
        for body in [b"".to_vec(), b"{\"id\":\"1\"}".to_vec(), "é{}".repeat(100_000).into_bytes()] {
            let mut unpacked = Vec::new();
            let packed = Compression::Gzip.pack(body.clone()).unwrap();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
            assert_eq!(unpacked, body);
            assert!(packed.len() < body.len() / 10 + 50);
            let packed = Compression::Zstd.pack(body.clone()).unwrap();
            assert_eq!(zstd::decode_all(packed.as_slice()).unwrap(), body);
            assert!(packed.len() < body.len() / 10 + 50);
            assert_eq!(Compression::None.pack(body.clone()).unwrap(), body);
        }
        let encodings = [Compression::None, Compression::Gzip, Compression::Zstd].map(Compression::content_encoding);
        assert_eq!(encodings, ["UTF-8", "gzip", "zstd"]);
    }
}
