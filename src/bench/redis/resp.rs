//! The little of Redis's protocol that a comparison needs: commands there, simple answers back.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>, version 2.

use std::io::{self, BufRead, ErrorKind, Read};

/// A longer line is nothing that Redis says.
const LINE_MAX: u64 = 64 << 10;
/// A longer text is nothing that was asked for.
const TEXT_MAX: usize = 1 << 20;

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// As in `OK`.
    Status(String),
    /// A refusal, its code first, as in `NOAUTH Authentication required.`
    Error(String),
    /// A count.
    Integer(i64),
    /// Bytes, as text.
    Text(String),
    /// Nothing.
    Null,
}

/// Appends a command to a message.
pub(super) fn push(message: &mut Vec<u8>, words: &[&[u8]]) {
    message.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        message.extend(format!("${}\r\n", word.len()).bytes());
        message.extend_from_slice(word);
        message.extend_from_slice(b"\r\n");
    }
}

/// Reads one answer.
///
/// # Errors
/// `InvalidData` for what no Redis says, `UnexpectedEof` when the connection ends, or whatever the
/// connection answers.
pub(super) fn read(from: &mut impl BufRead) -> io::Result<Answer> {
    let line = line(from)?;
    let nonsense = || {
        let shown: String = line.chars().take(40).collect();
        io::Error::new(ErrorKind::InvalidData, format!("{shown:?} is no answer of Redis"))
    };
    let kind = line.chars().next().ok_or_else(nonsense)?;
    let rest = &line[kind.len_utf8()..];
    match kind {
        '+' => Ok(Answer::Status(rest.to_owned())),
        '-' => Ok(Answer::Error(rest.to_owned())),
        ':' => rest.parse().map(Answer::Integer).map_err(|_| nonsense()),
        '$' if rest == "-1" => Ok(Answer::Null),
        '$' => {
            let len: usize = rest.parse().map_err(|_| nonsense())?;
            if len > TEXT_MAX {
                return Err(nonsense());
            }
            let mut bytes = vec![0; len + 2]; // and the end of the line
            from.read_exact(&mut bytes)?;
            bytes.truncate(len);
            Ok(Answer::Text(String::from_utf8_lossy(&bytes).into_owned()))
        }
        _ => Err(nonsense()),
    }
}

/// Up to the end of the line, without it.
fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    Read::take(&mut *from, LINE_MAX).read_until(b'\n', &mut bytes)?;
    match bytes.pop() {
        Some(b'\n') => Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()),
        Some(_) if bytes.len() as u64 + 1 == LINE_MAX => {
            Err(io::Error::new(ErrorKind::InvalidData, "a line without end is no answer of Redis"))
        }
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_counted_words() {
        let mut message = Vec::new();
        push(&mut message, &[b"SET", b"k", b"a\r\nb"]);
        assert_eq!(message, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn answers_are_read_one_by_one() {
        let mut said = &b"+OK\r\n-NOAUTH no\r\n:12\r\n$5\r\na\r\nbc\r\n$-1\r\n:x\r\n"[..];
        let mut next = || read(&mut said);
        assert_eq!(next().unwrap(), Answer::Status("OK".to_owned()));
        assert_eq!(next().unwrap(), Answer::Error("NOAUTH no".to_owned()));
        assert_eq!(next().unwrap(), Answer::Integer(12));
        assert_eq!(next().unwrap(), Answer::Text("a\r\nbc".to_owned()));
        assert_eq!(next().unwrap(), Answer::Null);
        assert_eq!(next().unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(next().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_no_redis_says_is_refused_and_no_memory_spent_on_it() {
        for said in ["HTTP/1.1 400 Bad Request\r\n", "\r\n", "$99999999999\r\n", "é\n", "$x\r\n"] {
            let refused = read(&mut said.as_bytes()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidData, "{said:?}");
        }
        let refused = read(&mut io::BufReader::new(io::repeat(b'+'))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
    }
}
