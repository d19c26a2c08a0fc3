//! Does this file match the selection?

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use glob::{MatchOptions, Pattern};
use pelton_core::{Error, Result};

use crate::selection::Selection;

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Extensions and patterns that were checked.
#[derive(Debug)]
pub struct Filter {
    extensions: BTreeSet<String>,
    globs: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Filter {
    /// Of a selection's `extensions`, `globs` and `exclude`.
    pub fn new(selection: &Selection) -> Result<Filter> {
        let mut extensions = BTreeSet::new();
        for given in &selection.extensions {
            let extension = given.strip_prefix('.').unwrap_or(given);
            if extension.is_empty() || extension.contains(['.', '/', '*']) {
                return Err(Error::invalid(format!(
                    "`{given}` is not a file extension; write the part after the last dot, as in `md`, or use a glob"
                )));
            }
            extensions.insert(extension.to_lowercase());
        }
        let glob = |g: &String| Pattern::new(g).map_err(|e| Error::invalid(format!("glob `{g}`: {e}")));
        Ok(Filter {
            extensions,
            globs: selection.globs.iter().map(glob).collect::<Result<_>>()?,
            exclude: selection.exclude.iter().map(glob).collect::<Result<_>>()?,
        })
    }

    pub fn takes(&self, path: &Path, uri: &str) -> bool {
        let extension = || path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let name = uri.rsplit('/').next().unwrap_or(uri);
        let text = |glob: &Pattern| if glob.as_str().contains('/') { uri } else { name };
        (self.extensions.is_empty() || extension().is_some_and(|e| self.extensions.contains(&e)))
            && (self.globs.is_empty() || self.globs.iter().any(|g| g.matches_with(text(g), OPTIONS)))
            && !self.exclude.iter().any(|g| g.matches_with(text(g), OPTIONS))
    }
}

/// ` with extension md, txt and a name like *.md`: empty where everything is taken.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extensions: Vec<&str> = self.extensions.iter().map(String::as_str).collect();
        let globs: Vec<&str> = self.globs.iter().map(Pattern::as_str).collect();
        if !extensions.is_empty() {
            write!(f, " with extension {}", extensions.join(", "))?;
        }
        if !globs.is_empty() {
            write!(
                f,
                "{} a name like {}",
                if extensions.is_empty() { " with" } else { " and" },
                globs.join(", ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(extensions: &[&str], globs: &[&str], uri: &str) -> bool {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let selection = Selection {
            extensions: owned(extensions),
            globs: owned(globs),
            exclude: owned(&["print.html", "drafts/**"]),
            ..Selection::default()
        };
        Filter::new(&selection).unwrap().takes(Path::new(uri), uri)
    }

    #[test]
    fn files_are_taken_by_extension_and_glob() {
        assert!(takes(&[], &[], "a/b"));
        assert!(takes(&["md", ".TXT"], &[], "a/b.Md"));
        assert!(takes(&["txt"], &[], "b.TXT"));
        assert!(!takes(&["md"], &[], "a/md"));
        assert!(!takes(&["md"], &[], "a.md/b"));
        assert!(takes(&[], &["*.md"], "a/b/c.md"));
        assert!(!takes(&[], &["a/*.md"], "a/b/c.md"));
        assert!(takes(&[], &["a/**/*.md"], "a/b/c.md"));
        assert!(takes(&["md"], &["c*", "d*"], "d.md"));
        assert!(!takes(&["md"], &["c*"], "c.txt"));
        assert!(!takes(&[], &[], "book/print.html"));
        assert!(!takes(&["html"], &[], "drafts/a/b.html"));
        assert!(takes(&["html"], &[], "a/drafts/b.html"));
    }

    #[test]
    fn a_wrong_filter_is_refused() {
        for bad in ["", ".", "tar.gz", "*.md"] {
            let selection = Selection { extensions: vec![bad.into()], ..Selection::default() };
            assert!(Filter::new(&selection).is_err(), "{bad}");
        }
        let selection = Selection { globs: vec!["a[".into()], ..Selection::default() };
        assert!(Filter::new(&selection).unwrap_err().message().starts_with("glob `a[`"));
    }
}
