//! Packed message bodies: a `content_encoding` of `gzip` or `zstd` is undone; any other one, such as the extractor's usual
//! `UTF-8`, means that the body is as it is. Either way there is a limit to its size.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;

use crate::message::Reject;

/// Unpacks a body, to at most `limit` bytes. `None` if it is not packed, and not larger than that.
///
/// # Errors
/// [`Reject`] with reason `invalid_encoding` (damaged, or not packed at all) or `body_too_large`.
pub fn unpack(body: &[u8], content_encoding: Option<&str>, limit: usize) -> Result<Option<Vec<u8>>, Reject> {
    let encoding = content_encoding.unwrap_or_default().trim().to_ascii_lowercase();
    let unpacked = match encoding.as_str() {
        "gzip" | "x-gzip" => read(MultiGzDecoder::new(body), limit),
        "zstd" => zstd::Decoder::with_buffer(body).and_then(|decoder| read(decoder, limit)),
        _ if body.len() <= limit => return Ok(None),
        _ => {
            let detail = format!("it has {} bytes, more than MAX_BODY_BYTES = {limit}", body.len());
            return Err(Reject::new("body_too_large", detail));
        }
    };
    match unpacked {
        Ok(unpacked) if unpacked.len() <= limit => Ok(Some(unpacked)),
        Ok(_) => {
            let detail = format!("unpacked it has more than MAX_BODY_BYTES = {limit} bytes");
            Err(Reject::new("body_too_large", detail))
        }
        Err(e) => Err(Reject::new("invalid_encoding", format!("content_encoding is {encoding}, but: {e}"))),
    }
}

/// Everything, or one byte more than the limit.
fn read(packed: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    packed.take(limit as u64 + 1).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(text).expect("to memory");
        out.finish().expect("to memory")
    }

    #[test]
    fn packed_bodies_are_unpacked_and_others_left_alone() {
        let text = br#"{"id":"1"}"#.repeat(100);
        let zstd = zstd::bulk::compress(&text, 3).expect("to memory");
        let members = [gzip(&text[..500]), gzip(&text[500..])].concat();
        for (body, encoding) in [(gzip(&text), "gzip"), (gzip(&text), " GZIP"), (members, "x-gzip"), (zstd, "zstd")] {
            let unpacked = unpack(&body, Some(encoding), text.len()).expect(encoding);
            assert!(unpacked.as_ref() == Some(&text), "{encoding}");
        }
        for encoding in [None, Some("UTF-8"), Some("br"), Some("")] {
            assert_eq!(unpack(&text, encoding, text.len()), Ok(None), "{encoding:?}");
            let too_large = unpack(&text, encoding, text.len() - 1).expect_err("one byte too many");
            assert_eq!(too_large.reason, "body_too_large", "{encoding:?}");
        }
    }

    #[test]
    fn what_is_damaged_or_too_large_is_rejected() {
        let text = vec![b' '; 100_000];
        let mut cut = gzip(&text);
        cut.truncate(60);
        for (body, encoding, limit, reason) in [
            (gzip(&text), "gzip", 99_999, "body_too_large"),
            (zstd::bulk::compress(&text, 3).expect("to memory"), "zstd", 99_999, "body_too_large"),
            (cut, "gzip", 1_000_000, "invalid_encoding"),
            (b"{}".to_vec(), "gzip", 100, "invalid_encoding"),
            (b"{}".to_vec(), "zstd", 100, "invalid_encoding"),
            (Vec::new(), "gzip", 100, "invalid_encoding"),
        ] {
            assert_eq!(unpack(&body, Some(encoding), limit).expect_err(reason).reason, reason, "{encoding}");
        }
    }
}
