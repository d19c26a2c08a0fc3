//! Markdown to text.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::document::Document;
use crate::html;
use crate::prose::Prose;

/// The text as a reader sees it: headings and code as they are, no markup. The title is the first heading.
pub(crate) fn read(source: &str) -> Document {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut prose = Prose::default();
    let mut title: Option<String> = None;
    let mut heading: Option<String> = None;
    let mut raw_html: Option<String> = None;
    let mut in_metadata = false;
    for event in Parser::new_ext(source, options) {
        match event {
            Event::Start(Tag::MetadataBlock(_)) => in_metadata = true,
            Event::End(TagEnd::MetadataBlock(_)) => in_metadata = false,
            Event::Text(t) if !in_metadata => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&t);
                }
                prose.run(&t);
            }
            Event::Code(t) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&t);
                }
                prose.run(&t);
            }
            Event::SoftBreak => prose.run(" "),
            Event::HardBreak => prose.line(),
            Event::Start(Tag::Heading { .. }) => {
                prose.block();
                heading = title.is_none().then(String::new);
            }
            Event::End(TagEnd::Heading(_)) => {
                prose.block();
                title = title.or(heading.take()).filter(|t| !t.trim().is_empty());
            }
            Event::Start(Tag::CodeBlock(_)) => prose.verbatim(),
            Event::Start(Tag::Item) => prose.item(),
            Event::End(TagEnd::TableCell) => prose.cell(),
            Event::Start(Tag::TableRow | Tag::TableHead) => prose.line(),
            Event::Start(Tag::HtmlBlock) => raw_html = Some(String::new()),
            Event::Html(t) => match &mut raw_html {
                Some(html) => html.push_str(&t),
                None => prose.run(" "),
            },
            Event::End(TagEnd::HtmlBlock) => {
                prose.block();
                prose.run(&html::fragment(&raw_html.take().unwrap_or_default()));
                prose.block();
            }
            Event::Start(
                Tag::Paragraph
                | Tag::BlockQuote(_)
                | Tag::List(_)
                | Tag::Table(_)
                | Tag::FootnoteDefinition(_),
            )
            | Event::End(
                TagEnd::Paragraph
                | TagEnd::BlockQuote(_)
                | TagEnd::CodeBlock
                | TagEnd::List(_)
                | TagEnd::Table
                | TagEnd::FootnoteDefinition,
            )
            | Event::Rule => prose.block(),
            _ => {}
        }
    }
    Document { title: title.unwrap_or_default(), text: prose.finish() }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn markup_goes_headings_and_code_stay() {
        let source = "---\nlayout: page\n---\n# A *fine* `title`\n\nSome **bold** [link](http://x) and\nmore.\n\n\
            ```rust\nfn main() {\n    ok();\n}\n```\n\n## Next\n\n- one\n- two `x`\n\n  more of two\n\n\
            | a | b |\n|---|---|\n| 1 | 2 |\n\n<div>raw <b>html</b><script>no()</script></div>\n\nEnd.\n";
        let document = read(source);
        assert_eq!(document.title, "A fine title");
        assert_eq!(
            document.text,
            "A fine title\n\nSome bold link and more.\n\nfn main() {\n    ok();\n}\n\nNext\n\n- one\n\n- two x\n\n\
             more of two\n\na | b\n1 | 2\n\nraw html\n\nEnd."
        );
    }
}
