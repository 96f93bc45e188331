//! Records out of a dump's XML, one at a time, from a stream of any size.
//!
//! A record is parsed where it lies in the buffer. If that fails, either the buffer ends within it or it is broken:
//! then the beginning of the *next* record is looked for, and what lies before it is parsed alone. So a broken record,
//! whatever is wrong with it, never takes a neighbour along. (A raw `<` stands for nothing but markup, and no record
//! has an element of its own name in it; but for labels, see `record::Rules`.)

use std::borrow::Cow;
use std::io::{self, Read};

use common::DataType;
use memchr::{memchr_iter, memmem};

use crate::input::{Bad, Next, Place, ReadError};
use crate::node::Object;
use record::{Fault, Rules, is_delimiter, open, parse};

mod plain;
mod record;

/// Bytes of the buffer, unless a record needs more.
const BUFFER: usize = 256 * 1024;
/// How much longer than the largest record a text may become by its repair: nobody has a use for one that is garbage all over.
const MOST_REPAIRED: usize = 2;
/// More bytes than a record's start tag has.
const KEPT: usize = 256;

/// Reads the records of one file.
pub struct XmlReader<R> {
    source: R,
    data_type: DataType,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer begins.
    start: usize,
    /// Where what was read into the buffer ends.
    end: usize,
    /// Place in the stream of the unread part's beginning.
    place: Place,
    /// Why nothing more comes: the end of the stream (`None` inside) or an error.
    over: Option<Option<io::Error>>,
    /// White space before each record, as before the first one; `None` until that is known.
    indent: Option<Vec<u8>>,
    done: bool,
    max_record: usize,
}

impl<R: Read> XmlReader<R> {
    /// A reader of `data_type`'s records; one of more than `max_record` bytes of XML is bad.
    pub fn new(source: R, data_type: DataType, max_record: usize) -> Self {
        XmlReader {
            source,
            data_type,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            place: Place { offset: 0, line: 1 },
            over: None,
            indent: None,
            done: false,
            max_record,
        }
    }

    /// Place of the first byte that is not read yet.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Goes on behind a record that an earlier run ended at.
    ///
    /// # Errors
    /// [`ReadError`] if the stream ends before.
    pub fn resume(&mut self, at: Place) -> Result<(), ReadError> {
        self.begin()?;
        while self.place.offset < at.offset {
            if self.start == self.end && !self.fill() {
                return Err(self.ended());
            }
            let wanted = usize::try_from(at.offset - self.place.offset).unwrap_or(usize::MAX);
            self.advance(wanted.min(self.end - self.start));
        }
        self.place = at;
        Ok(())
    }

    /// The next record, made into something by `make`, or a bad one, or the end.
    ///
    /// # Errors
    /// [`ReadError`] if the stream fails or ends too early; everything before was returned.
    pub fn next<T>(&mut self, mut make: impl FnMut(Object<'_>) -> T) -> Result<Next<T>, ReadError> {
        self.begin()?;
        loop {
            self.skip_blanks();
            if self.done {
                return self.rest();
            }
            match self.at_start()? {
                At::Record => {}
                At::RootEnd => {
                    self.done = true;
                    continue;
                }
                At::Nothing => continue,
                At::Junk => {
                    let Some(end) = self.next_start(self.start, false) else { return self.without_end() };
                    return Ok(Next::Bad(self.reject("unexpected_content", "this is no record".to_owned(), end)));
                }
            }
            let begin = self.place;
            let plain = plain::parse(&self.buffer[self.start..self.end], &self.rules());
            if let Some((record, used)) = plain.filter(|(_, used)| *used <= self.max_record) {
                let made = make(record);
                self.advance(used);
                return Ok(Next::Record(made, begin));
            }
            if let Ok((made, used)) = self.attempt(self.end, false, &mut make) {
                self.advance(used);
                return Ok(Next::Record(made, begin));
            }
            for indented in [true, false] {
                let next = self.next_start(self.start + 1, indented);
                match (self.attempt(next.unwrap_or(self.end), true, &mut make), next) {
                    (Ok((made, used)), _) => {
                        self.advance(used);
                        return Ok(Next::Record(made, begin));
                    }
                    (Err(_), _) if indented => {}
                    (Err(_), None) => return self.without_end(),
                    (Err(fault), Some(end)) => {
                        let large = end - self.start > self.max_record;
                        let fault = if large { Fault::TooLarge(self.max_record) } else { fault };
                        return Ok(Next::Bad(self.reject(fault.reason(), fault.to_string(), end)));
                    }
                }
            }
        }
    }

    /// Makes something of the record that begins the unread part and ends before `end`. Returns the number of its bytes,
    /// too. What is no UTF-8 is a fault or is `repaired`.
    fn attempt<T>(
        &self,
        end: usize,
        repaired: bool,
        make: &mut impl FnMut(Object<'_>) -> T,
    ) -> Result<(T, usize), Fault> {
        let bytes = &self.buffer[self.start..end];
        if repaired && repaired_length(bytes) > MOST_REPAIRED * self.max_record {
            return Err(Fault::TooLarge(self.max_record));
        }
        let text = if repaired { String::from_utf8_lossy(bytes) } else { Cow::Borrowed("") };
        let (record, used) = match &text {
            Cow::Owned(text) => {
                let (record, used) = parse(text.as_bytes(), &self.rules())?;
                (record, length_before_repair(bytes, used))
            }
            Cow::Borrowed(_) => parse(bytes, &self.rules())?,
        };
        if used > self.max_record {
            return Err(Fault::TooLarge(self.max_record));
        }
        Ok((make(record), used))
    }

    fn rules(&self) -> Rules<'_> {
        Rules::new(self.data_type, self.indent.as_deref().unwrap_or_default())
    }

    /// Reads up to the first record, once.
    fn begin(&mut self) -> Result<(), ReadError> {
        if self.indent.is_some() {
            return Ok(());
        }
        loop {
            self.want(4);
            let rest = &self.buffer[self.start..self.end];
            if rest.starts_with(b"\xef\xbb\xbf") {
                self.advance(3);
            } else if rest.first().is_some_and(u8::is_ascii_whitespace) {
                self.advance(1);
            } else if rest.starts_with(b"<?") || rest.starts_with(b"<!") {
                if matches!(self.skip_markup(), At::Junk) {
                    return Err(self.ended());
                }
            } else {
                break;
            }
        }
        let root = self.find(b">", 1).ok_or_else(|| self.ended())?;
        let text = String::from_utf8_lossy(&self.buffer[self.start..=root]).into_owned();
        let name =
            text.trim_start_matches('<').trim_end_matches(['>', '/']).split_whitespace().next().unwrap_or_default();
        if !text.starts_with('<') || name != self.data_type.name() {
            let found = text.chars().take(40).collect();
            return Err(ReadError::WrongRoot { expected: self.data_type.name(), found });
        }
        self.advance(root + 1 - self.start);
        self.done = text.ends_with("/>");
        let mut blanks = 0;
        loop {
            self.want(blanks + 1);
            match self.buffer[self.start..self.end].get(blanks) {
                Some(b) if b.is_ascii_whitespace() && blanks < KEPT => blanks += 1,
                _ => break,
            }
        }
        self.indent = Some(self.buffer[self.start..self.start + blanks].to_vec());
        Ok(())
    }

    /// What the unread part begins with; comments and the like are skipped.
    fn at_start(&mut self) -> Result<At, ReadError> {
        let open = open(self.data_type).as_bytes();
        self.want(open.len() + 4);
        let rest = &self.buffer[self.start..self.end];
        match rest {
            [] => Err(self.ended()),
            [b'<', b'!' | b'?', ..] => Ok(self.skip_markup()),
            [b'<', b'/', name @ ..] if name.starts_with(self.data_type.name().as_bytes()) => {
                self.find(b">", 2).map(|_| At::RootEnd).ok_or_else(|| self.ended())
            }
            _ if rest.starts_with(open) && rest.get(open.len()).is_none_or(is_delimiter) => Ok(At::Record),
            _ => Ok(At::Junk),
        }
    }

    /// Skips a comment, a declaration or a processing instruction, if it has an end.
    fn skip_markup(&mut self) -> At {
        let close: &[u8] = match &self.buffer[self.start..self.end] {
            [b'<', b'!', b'-', b'-', ..] => b"-->",
            [b'<', b'?', ..] => b"?>",
            _ => b">",
        };
        let Some(at) = self.find(close, 2) else { return At::Junk };
        self.advance(at + close.len() - self.start);
        At::Nothing
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = &self.buffer[self.start..self.end];
            let blanks = rest.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(rest.len());
            self.advance(blanks);
            if self.start < self.end || !self.fill() {
                return;
            }
        }
    }

    /// Reads to the very end, so that a damaged file does not pass for a whole one: the checksum comes last. Records
    /// behind the root's end, which then is a wrong end tag or the end of one of several files in one, are not lost.
    fn rest<T>(&mut self) -> Result<Next<T>, ReadError> {
        self.want(Bad::EXCERPT);
        let begin = self.place;
        let excerpt = Bad::excerpt(&self.buffer[self.start..self.end]);
        loop {
            match self.next_start(self.start, false) {
                Some(at) if self.buffer[at..].starts_with(b"</") => self.advance(at + 2 - self.start),
                Some(at) => {
                    self.advance(at - self.start);
                    self.done = false;
                    let detail = format!("records follow </{}>", self.data_type.name());
                    return Ok(Next::Bad(Bad {
                        reason: "unexpected_content",
                        detail,
                        excerpt,
                        begin,
                        end: self.place,
                    }));
                }
                None if self.over.is_some() => break,
                None => self.advance((self.end - self.start).saturating_sub(KEPT)),
            }
        }
        self.advance(self.end - self.start);
        match self.over.take() {
            Some(Some(e)) => Err(ReadError::Io(e)),
            _ => {
                self.over = Some(None);
                Ok(Next::End)
            }
        }
    }

    /// Where in the buffer the next record or the root's end begins, not before `from`; only a record that is `indented`
    /// as the first one, if so. `None` if the stream ends, or the largest record is exceeded, before that.
    fn next_start(&mut self, mut from: usize, indented: bool) -> Option<usize> {
        let open = open(self.data_type);
        let close = format!("</{}", self.data_type.name());
        loop {
            let rules = self.rules();
            let buffer = &self.buffer[..self.end];
            let root = memmem::find(&buffer[from..], close.as_bytes()).map(|at| from + at);
            // The last bytes may be the beginning of what is looked for.
            let mut again = self.end.saturating_sub(open.len() + close.len());
            for at in memmem::find_iter(&buffer[from..root.unwrap_or(self.end)], open).map(|at| from + at) {
                match rules.begins(buffer, at) {
                    Some(true) if !indented || rules.is_indented(buffer, at) => return Some(at),
                    Some(_) => {}
                    None => {
                        again = again.min(at);
                        break;
                    }
                }
            }
            if root.is_some() {
                return root;
            }
            from = from.max(again);
            if self.too_large() {
                return None;
            }
            let before = self.start;
            if !self.fill() {
                return None;
            }
            from -= before - self.start;
        }
    }

    fn too_large(&self) -> bool {
        self.end - self.start > self.max_record + KEPT
    }

    /// The stream ends within a record, or the record is too large: then it is skipped.
    fn without_end<T>(&mut self) -> Result<Next<T>, ReadError> {
        if !self.too_large() {
            return Err(self.ended());
        }
        let begin = self.place;
        let excerpt = Bad::excerpt(&self.buffer[self.start..self.end]);
        loop {
            // What is kept may be the beginning of the next record.
            self.advance(self.end - self.start - KEPT);
            if let Some(next) = self.next_start(self.start, false) {
                self.advance(next - self.start);
                let fault = Fault::TooLarge(self.max_record);
                let (reason, detail) = (fault.reason(), fault.to_string());
                return Ok(Next::Bad(Bad { reason, detail, excerpt, begin, end: self.place }));
            }
            if self.over.is_some() {
                return Err(self.ended());
            }
        }
    }

    fn reject(&mut self, reason: &'static str, detail: String, end: usize) -> Bad {
        let begin = self.place;
        let bytes = &self.buffer[self.start..end];
        let excerpt = Bad::excerpt(bytes);
        self.advance(end - self.start);
        Bad { reason, detail, excerpt, begin, end: self.place }
    }

    fn ended(&mut self) -> ReadError {
        match self.over.take() {
            Some(Some(e)) => ReadError::Io(e),
            _ => ReadError::Truncated { missing: format!("</{}>", self.data_type.name()) },
        }
    }

    /// Where `pattern` is, looked for from `skip` bytes behind the unread part's beginning.
    fn find(&mut self, pattern: &[u8], skip: usize) -> Option<usize> {
        loop {
            let from = (self.start + skip).min(self.end);
            if let Some(at) = memmem::find(&self.buffer[from..self.end], pattern) {
                return Some(from + at);
            }
            if self.too_large() || !self.fill() {
                return None;
            }
        }
    }

    /// Tries to have this many unread bytes.
    fn want(&mut self, bytes: usize) {
        while self.end - self.start < bytes && self.fill() {}
    }

    fn advance(&mut self, bytes: usize) {
        let read = &self.buffer[self.start..self.start + bytes];
        self.place.offset += bytes as u64;
        self.place.line += memchr_iter(b'\n', read).count() as u64;
        self.start += bytes;
    }

    /// Reads more; false if there is no more.
    fn fill(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            // No larger than the largest record makes it (see `too_large`), unless its caller wants more.
            let enough = self.max_record + 2 * KEPT;
            let twice = self.buffer.len() * 2;
            self.buffer.resize(if self.buffer.len() < enough { twice.min(enough) } else { twice }, 0);
        } else if self.buffer.len() > BUFFER && self.end < BUFFER / 2 {
            self.buffer.truncate(BUFFER);
            self.buffer.shrink_to_fit();
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.over = Some(None),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => self.over = Some(Some(e)),
            }
            return self.over.is_none();
        }
    }
}

/// What comes next in a file.
enum At {
    Record,
    RootEnd,
    Nothing,
    Junk,
}

/// The length of that text when everything that is no UTF-8 is replaced: up to three times as much.
fn repaired_length(bytes: &[u8]) -> usize {
    let replaced = |invalid: &[u8]| if invalid.is_empty() { 0 } else { char::REPLACEMENT_CHARACTER.len_utf8() };
    bytes.utf8_chunks().map(|chunk| chunk.valid().len() + replaced(chunk.invalid())).sum()
}

/// The length of what became so long when everything that is no UTF-8 was replaced.
fn length_before_repair(bytes: &[u8], repaired: usize) -> usize {
    let (mut before, mut after) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        if after + chunk.valid().len() >= repaired {
            break;
        }
        before += chunk.valid().len() + chunk.invalid().len();
        after += chunk.valid().len() + char::REPLACEMENT_CHARACTER.len_utf8();
    }
    before + repaired - after
}

#[cfg(test)]
mod tests;
