//! HTTP requests by hand, instead of an HTTP client that every test run would have to compile.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(5);

/// The body of the answer to a GET, whatever its status.
pub(crate) async fn get(endpoint: &str, path: &str) -> Result<String> {
    let (_, body) = exchange(endpoint, &format!("GET {path}"), None, "").await?;
    Ok(body)
}

/// The body of the answer to a POST of JSON; an error for any status but 200.
pub(crate) async fn post(endpoint: &str, path: &str, json: &str) -> Result<String> {
    post_as(None, endpoint, path, json).await
}

/// As [`post`], by the user who was given this token.
pub(crate) async fn post_as(token: Option<&str>, endpoint: &str, path: &str, json: &str) -> Result<String> {
    let (status, body) = exchange(endpoint, &format!("POST {path}"), token, json).await?;
    if status != "200" {
        bail!("POST {path} answered {status}: {body}");
    }
    Ok(body)
}

async fn exchange(
    endpoint: &str,
    request: &str,
    token: Option<&str>,
    json: &str,
) -> Result<(String, String)> {
    let address = endpoint.strip_prefix("http://").context("only http:// can be asked here")?;
    let address = address.trim_end_matches('/');
    let authorization = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    // 1.0, so that the answer is not chunked and ends with the connection.
    let text = format!(
        "{request} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\n\r\n{json}",
        json.len()
    );
    let answer = timeout(LIMIT, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    let answer = answer.await.with_context(|| format!("{address} did not answer in time"))??;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP from {address}"))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    Ok((status.to_owned(), body.to_owned()))
}
