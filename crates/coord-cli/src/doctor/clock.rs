//! Whether this host's clock agrees with etcd's. etcd tells the time only in the headers of its HTTP answers.

use std::time::{Duration, SystemTime};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::finding::{Finding, Level};

/// The longest answer that is read; etcd's has some hundred bytes.
const LONGEST: u64 = 16 << 10;

/// Below this a difference may be that of the way, and of a time in whole seconds.
const TOLERATED: Duration = Duration::from_secs(2);

/// Asks the first endpoint that answers within `limit`.
pub(super) async fn examine(endpoints: &[String], speaks_tls: bool, limit: Duration) -> Finding {
    if speaks_tls || endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
        let advice = "compare `date` here and on etcd's hosts";
        return Finding::new(Level::Skipped, "clock", "is not asked for over TLS", advice);
    }
    for endpoint in endpoints {
        let authority = endpoint.trim_start_matches("http://");
        let before = SystemTime::now();
        if let Ok(Ok(Some(theirs))) = tokio::time::timeout(limit, ask(authority)).await {
            return of_times(theirs, before, SystemTime::now());
        }
    }
    Finding::new(Level::Skipped, "clock", "etcd does not tell its time", "is there a proxy before it?")
}

async fn ask(authority: &str) -> std::io::Result<Option<SystemTime>> {
    let mut stream = TcpStream::connect(authority).await?;
    let request = format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(date_of(&String::from_utf8_lossy(&answer)))
}

/// The time in the head of an HTTP answer.
fn date_of(answer: &str) -> Option<SystemTime> {
    let fields = answer.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':'));
    let mut dates = fields.filter(|(name, _)| name.eq_ignore_ascii_case("date"));
    httpdate::parse_http_date(dates.next()?.1.trim()).ok()
}

/// `theirs` was true at some moment between `before` and `after`, and has whole seconds.
fn of_times(theirs: SystemTime, before: SystemTime, after: SystemTime) -> Finding {
    let ahead = before.duration_since(theirs + Duration::from_secs(1)).unwrap_or_default();
    let behind = theirs.duration_since(after).unwrap_or_default();
    if ahead < TOLERATED && behind < TOLERATED {
        return Finding::ok("clock", "agrees with etcd's");
    }
    let (difference, side) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let said = format!("is {} s {side} etcd's", difference.as_secs());
    let advice = "is NTP running on both hosts? Locks do not depend on it, but Snowflake numbers, and the times in \
                  histories and lists of ids do";
    Finding::new(Level::Warning, "clock", said, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_found() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n\
                      Date: Mon, 07 Nov 1994 08:49:37 GMT";
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(date_of(answer), Some(expected));
        for none in ["", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nDate: yesterday\r\n\r\n"] {
            assert_eq!(date_of(none), None);
        }
    }

    #[test]
    fn only_real_differences_are_told() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let seconds = Duration::from_secs;
        let table = [
            (now, "agrees"),
            (now - seconds(2), "agrees"),
            (now + seconds(1), "agrees"),
            (now - seconds(10), "is 9 s ahead of etcd's"),
            (now + seconds(60), "is 60 s behind etcd's"),
        ];
        for (theirs, expected) in table {
            let finding = of_times(theirs, now, now);
            assert!(finding.said.starts_with(expected), "{finding:?}");
            assert_eq!(finding.level == Level::Ok, expected == "agrees");
        }
    }
}
