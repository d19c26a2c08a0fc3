//! Text that is put together from inline runs and blocks: what both Markdown and HTML become.

/// What stands between what was written and what comes next; of two, the greater one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    Cell,
    Line,
    Block,
}

/// Blocks are set off by an empty line, white space within them is single, verbatim text stays as it is.
#[derive(Default)]
pub(crate) struct Prose {
    text: String,
    gap: Gap,
    bullet: bool,
    verbatim: bool,
}

impl Prose {
    fn raise(&mut self, gap: Gap) {
        self.gap = self.gap.max(gap);
    }

    fn settle(&mut self) {
        if !self.text.is_empty() {
            self.text.push_str(match self.gap {
                Gap::None => "",
                Gap::Space => " ",
                Gap::Cell => " | ",
                Gap::Line => "\n",
                Gap::Block => "\n\n",
            });
        }
        self.gap = Gap::None;
        if std::mem::take(&mut self.bullet) {
            self.text.push_str("- ");
        }
    }

    /// A run of text within a block, or of verbatim text between [`Prose::verbatim`] and [`Prose::block`].
    pub(crate) fn run(&mut self, run: &str) {
        if self.verbatim {
            // White space at the begin of a verbatim block is its first line's indentation, line ends are not.
            let run = if self.gap == Gap::Block || self.text.is_empty() {
                run.trim_start_matches(['\n', '\r'])
            } else {
                run
            };
            if !run.is_empty() {
                self.settle();
                self.text.push_str(run);
            }
            return;
        }
        if run.starts_with(char::is_whitespace) {
            self.raise(Gap::Space);
        }
        for word in run.split_whitespace() {
            self.settle();
            self.text.push_str(word);
            self.gap = Gap::Space;
        }
        if self.gap == Gap::Space && !run.ends_with(char::is_whitespace) && !run.trim().is_empty() {
            self.gap = Gap::None;
        }
    }

    /// A block begins or ends here.
    pub(crate) fn block(&mut self) {
        self.verbatim = false;
        self.text.truncate(self.text.trim_end().len());
        self.raise(Gap::Block);
    }

    /// A block begins here whose white space matters.
    pub(crate) fn verbatim(&mut self) {
        self.block();
        self.verbatim = true;
    }

    /// A line ends here, within a block.
    pub(crate) fn line(&mut self) {
        if self.verbatim {
            self.run("\n");
        } else {
            self.raise(Gap::Line);
        }
    }

    /// A list item begins here.
    pub(crate) fn item(&mut self) {
        self.raise(Gap::Line);
        self.bullet = true;
    }

    /// A table cell ends here.
    pub(crate) fn cell(&mut self) {
        self.raise(Gap::Cell);
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.truncate(self.text.trim_end().len());
        self.text
    }
}
