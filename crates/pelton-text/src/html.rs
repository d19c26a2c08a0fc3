//! HTML to text: what a page says, without what stands around it.

use scraper::{ElementRef, Html, Node, Selector, node::Element};

use crate::document::Document;
use crate::prose::Prose;

/// Where a page's content may be, the likeliest first.
const CONTENT: [&str; 4] = ["main", "[role=main]", "article", "body"];

/// The text of the page's content. The title is the page's own, or its first heading.
pub(crate) fn read(source: &str) -> Document {
    let page = Html::parse_document(source);
    let text = (CONTENT.iter().enumerate())
        .map(|(i, selector)| {
            let mut prose = Prose::default();
            let whole_page = i + 1 == CONTENT.len();
            let mut last: Option<ElementRef<'_>> = None;
            for root in page.select(&parse(selector)) {
                // Of an element within another of its kind, the outer one says everything.
                if last.is_none_or(|last| !root.ancestors().any(|a| a.id() == last.id())) {
                    write(root, whole_page, &mut prose);
                    last = Some(root);
                }
            }
            prose.finish()
        })
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    let title = ["head > title", "h1", "h2"].iter().find_map(|selector| {
        let mut prose = Prose::default();
        write(page.select(&parse(selector)).next()?, false, &mut prose);
        Some(prose.finish()).filter(|t| !t.is_empty())
    });
    Document { title: title.unwrap_or_default(), text }
}

/// The text of a piece of HTML.
pub(crate) fn fragment(source: &str) -> String {
    let mut prose = Prose::default();
    write(Html::parse_fragment(source).root_element(), true, &mut prose);
    prose.finish()
}

fn parse(selector: &str) -> Selector {
    Selector::parse(selector).expect("the selectors above are well-formed")
}

/// Walks with a loop and not by recursion: a page may nest as deep as it likes.
fn write(root: ElementRef<'_>, whole_page: bool, prose: &mut Prose) {
    use ego_tree::iter::Edge;
    let mut skipped = None;
    for edge in root.traverse() {
        match edge {
            Edge::Open(node) if skipped.is_none() => match node.value() {
                Node::Text(text) => prose.run(text),
                Node::Element(e) if node.id() != root.id() && is_furniture(e, whole_page) => {
                    skipped = Some(node.id());
                }
                Node::Element(e) => match shape(e.name()) {
                    Shape::Inline | Shape::Cell => {}
                    Shape::Break | Shape::Row => prose.line(),
                    Shape::Item => prose.item(),
                    Shape::Verbatim => prose.verbatim(),
                    Shape::Block => prose.block(),
                },
                _ => {}
            },
            Edge::Close(node) => {
                if skipped == Some(node.id()) {
                    skipped = None;
                } else if let (None, Node::Element(e)) = (skipped, node.value()) {
                    match shape(e.name()) {
                        Shape::Inline | Shape::Item | Shape::Break => {}
                        Shape::Row => prose.line(),
                        Shape::Cell => prose.cell(),
                        Shape::Block | Shape::Verbatim => prose.block(),
                    }
                }
            }
            Edge::Open(_) => {}
        }
    }
}

/// Whether an element belongs to the page and not to what it says.
fn is_furniture(e: &Element, whole_page: bool) -> bool {
    let named = match e.name() {
        "script" | "style" | "noscript" | "template" | "title" | "nav" | "aside" | "svg" | "math"
        | "iframe" | "object" | "canvas" | "video" | "audio" | "form" | "button" | "select" | "textarea"
        | "dialog" | "menu" => true,
        // Within the content, these hold an article's title and its notes.
        "header" | "footer" => whole_page,
        _ => false,
    };
    let role = match e.attr("role") {
        Some("navigation" | "search" | "complementary" | "menu" | "menubar" | "toolbar" | "dialog") => true,
        Some("banner" | "contentinfo") => whole_page,
        _ => false,
    };
    // `boring` are the lines of an example that mdBook hides from the reader.
    let hidden = e.attr("hidden").is_some()
        || e.attr("aria-hidden") == Some("true")
        || e.classes().any(|c| c == "boring");
    named || role || hidden
}

enum Shape {
    Inline,
    Block,
    Verbatim,
    Item,
    Row,
    Cell,
    Break,
}

fn shape(name: &str) -> Shape {
    match name {
        "address" | "article" | "blockquote" | "body" | "dd" | "details" | "div" | "dl" | "dt"
        | "fieldset" | "figcaption" | "figure" | "footer" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6"
        | "header" | "hgroup" | "hr" | "main" | "ol" | "p" | "section" | "summary" | "table" | "ul"
        | "caption" => Shape::Block,
        "pre" => Shape::Verbatim,
        "li" => Shape::Item,
        "tr" => Shape::Row,
        "td" | "th" => Shape::Cell,
        "br" => Shape::Break,
        _ => Shape::Inline,
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_book_page_gives_its_main_content_only() {
        let page = r##"<!DOCTYPE html><html><head><title>Boxes - A Book</title><script>var x = 1;</script>
            <style>p { color: red }</style></head><body><nav id="sidebar"><ol><li>Chapter 1</li></ol></nav>
            <div id="page"><div id="menu-bar"><h1 class="menu-title">A Book</h1><button>Theme</button></div>
            <main><h2 id="b"><a class="header" href="#b">Boxes &amp; more</a></h2>
            <p>A box is a
               <em>pointer</em>.</p>
            <pre><pre class="playground"><code class="language-rust"><span class="boring">fn main() {
</span>    let b = 1;
    <span class="k">use</span>(b);
<span class="boring">}</span></code></pre></pre><ul><li>one</li><li><p>two</p></li></ul>
            <table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>
            <aside>by the way</aside>last<br>line</main>
            <nav class="nav-wrapper">Next chapter</nav></div><script>go()</script></body></html>"##;
        let document = read(page);
        assert_eq!(document.title, "Boxes - A Book");
        assert_eq!(
            document.text,
            "Boxes & more\n\nA box is a pointer.\n\n    let b = 1;\n    use(b);\n\n- one\n\n- two\n\na | b\n1 | 2\n\nlast\nline"
        );
    }

    #[test]
    fn other_pages_lose_what_stands_around_the_content() {
        for (page, title, text) in [
            (
                "<body><header>Site</header><nav>Menu</nav><div><h1>Hello</h1><p>World</p></div><footer>(c)</footer>",
                "Hello",
                "Hello\n\nWorld",
            ),
            (
                "<body><div>Top</div><article><header><h1>T</h1></header>Text</article><div>Ads</div>",
                "T",
                "T\n\nText",
            ),
            ("<body><div role=main>In<div aria-hidden=true>x</div></div>out", "", "In"),
            ("<body><main></main><p>Only here", "", "Only here"),
            ("<article>a<article>b</article></article><article>c</article>", "", "a\n\nb\n\nc"),
            ("no tags at all", "", "no tags at all"),
            ("<body><script>only()</script>", "", ""),
        ] {
            let document = read(page);
            assert_eq!((document.title.as_str(), document.text.as_str()), (title, text), "{page}");
        }
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let page = "<div>".repeat(5_000) + "deep";
        assert_eq!(read(&page).text, "deep");
    }
}
