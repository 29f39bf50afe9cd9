//! Owner of a stored entry, so that people can see who holds what.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest label in bytes.
pub const MAX_LABEL_BYTES: usize = 128;

/// A client as it describes itself in what it stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Owner {
    /// The name of its host.
    pub host: String,
    /// The id of its process.
    pub pid: u32,
    /// Name that its operators use, for example that of the service or the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// A name that no other client has, not even one of the same process.
    pub client: String,
}

impl Owner {
    /// A description, for backends.
    pub fn new(host: impl Into<String>, pid: u32, label: Option<String>, client: impl Into<String>) -> Self {
        Self { host: host.into(), pid, label, client: client.into() }
    }

    /// Checks a label before it is used.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if it is empty, longer than
    /// [`MAX_LABEL_BYTES`] or has a control character.
    pub fn check_label(label: &str) -> crate::Result<()> {
        if label.is_empty() || label.len() > MAX_LABEL_BYTES || label.chars().any(char::is_control) {
            let reason = format!("needs 1 to {MAX_LABEL_BYTES} bytes without control characters");
            return Err(crate::Error::invalid("label", reason));
        }
        Ok(())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(label) = &self.label {
            write!(f, "{label} ")?;
        }
        write!(f, "{}/{}/{}", self.host, self.pid, self.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_line() {
        let owner = Owner::new("web-1", 4242, None, "9f3a");
        assert_eq!(owner.to_string(), "web-1/4242/9f3a");
        let labelled = Owner { label: Some("checkout".into()), ..owner };
        assert_eq!(labelled.to_string(), "checkout web-1/4242/9f3a");
    }

    #[test]
    fn labels_are_checked() {
        assert!(Owner::check_label("checkout, blue").is_ok());
        for bad in ["", "a\nb", &"x".repeat(MAX_LABEL_BYTES + 1)] {
            assert!(Owner::check_label(bad).expect_err(bad).to_string().starts_with("invalid label: "));
        }
    }
}
