//! The numbered lists `docs/conformance.md` and `docs/faults.md` beside the tests that cite their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The cell of a row that has no test.
const NOT_BUILT: &str = "not built yet";
/// Directories with Rust code, and documents, which may cite numbers.
const DIRECTORIES: [&str; 6] = ["benches", "examples", "fuzz", "src", "testbed", "tests"];
const DOCUMENTS: [&str; 8] = [
    "CHANGELOG.md",
    "README.md",
    "SECURITY.md",
    "docs/conformance.md",
    "docs/faults.md",
    "docs/operations.md",
    "examples/flannel-node/README.md",
    "fuzz/README.md",
];

/// A number of a list: `R12`, `R63a`, `V7`, or `fault 3`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Number {
    Fault(usize),
    Rule(String),
}

/// A line of a list's table.
#[derive(Debug)]
struct Row {
    number: Number,
    /// Paths from the root of the repository, and names of tests in that file.
    tests: Vec<(String, String)>,
}

/// A test that runs without being asked for.
#[derive(Debug, Eq, PartialEq)]
struct Test {
    name: String,
    /// The comment above it.
    comment: String,
}

impl Test {
    fn cites(&self, number: &Number) -> bool {
        named(&self.name).contains(number) || cited(&self.comment).contains(number)
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Rows of the document's tables. `number` reads the first cell.
fn rows(document: &str, number: fn(&str) -> Option<Number>) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in read(&root().join(document)).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, first, _, tests, _] = cells[..] else { continue };
        let Some(number) = number(first) else { continue };
        let quoted = tests.split('`').skip(1).step_by(2);
        let tests_of_row = quoted.map(|test| match test.split_once(": ") {
            Some((path, name)) => (path.to_owned(), name.to_owned()),
            None => panic!("{number:?}: `{test}` is no path and test"),
        });
        let tests_of_row: Vec<_> = tests_of_row.collect();
        assert_eq!(tests_of_row.is_empty(), tests == NOT_BUILT, "{number:?} has tests, or says: {NOT_BUILT}");
        rows.push(Row { number, tests: tests_of_row });
    }
    rows
}

fn rules() -> Vec<Row> {
    rows("docs/conformance.md", |cell| rule(cell).map(Number::Rule))
}

fn faults() -> Vec<Row> {
    rows("docs/faults.md", |cell| cell.parse().ok().map(Number::Fault))
}

/// `R12`, `V7` or `R63a`.
fn rule(word: &str) -> Option<String> {
    let digits = word.strip_prefix(['R', 'V'])?;
    let digits = digits.strip_suffix('a').unwrap_or(digits);
    let is_number = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !digits.starts_with('0')).then(|| word.to_owned())
}

/// `R27` and `R31` give R28 to R30.
fn rules_between(first: &str, last: &str) -> Vec<Number> {
    let (list, first) = first.split_at(1);
    let bounds = (first.parse::<usize>(), last[1..].parse::<usize>());
    let (Ok(first), Ok(last)) = bounds else { panic!("{list}{first} to {last}") };
    (first + 1..last).map(|number| Number::Rule(format!("{list}{number}"))).collect()
}

/// The numbers at the front of a test's name: `r26_r70_fault_46_…`, `r27_to_r31_…`, `fault_31_32_…`.
fn named(name: &str) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::new();
    let mut words = name.split('_').peekable();
    let mut before: Option<String> = None;
    let upper = |word: &str| {
        let first = word.get(..1)?.to_ascii_uppercase();
        rule(&(first + &word[1..]))
    };
    while let Some(word) = words.peek() {
        if let Some(rule) = upper(word) {
            numbers.insert(Number::Rule(rule.clone()));
            before = Some(rule);
        } else if let (Some(first), Some(last)) = (
            before.as_ref().filter(|_| *word == "to"),
            name.split("_to_").nth(1).and_then(|rest| upper(rest.split('_').next()?)),
        ) {
            numbers.extend(rules_between(first, &last));
        } else {
            break;
        }
        words.next();
    }
    let after_fault = name.split('_').skip_while(|word| *word != "fault").skip(1);
    numbers.extend(after_fault.map_while(|word| word.parse().ok()).map(Number::Fault));
    numbers
}

/// The numbers in a text: `R1 and R3`, `R14 to R16`, `fault 5`, `Faults 1, 2 and 24 to 42`.
fn cited(text: &str) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::new();
    let words: Vec<&str> = text.split_whitespace().collect();
    let bare = |word: &str| word.trim_matches(|letter: char| !letter.is_alphanumeric()).to_owned();
    for (at, word) in words.iter().enumerate() {
        for part in word.split(|letter: char| !letter.is_alphanumeric() && letter != '_') {
            numbers.extend(rule(part).map(Number::Rule));
        }
        if *word == "to"
            && at > 0
            && let (Some(first), Some(last)) =
                (rule(&bare(words[at - 1])), words.get(at + 1).and_then(|word| rule(&bare(word))))
        {
            numbers.extend(rules_between(&first, &last));
        }
        let ends_a_clause = word.ends_with(|letter: char| !letter.is_alphanumeric());
        if matches!(bare(word).to_ascii_lowercase().as_str(), "fault" | "faults") && !ends_a_clause {
            numbers.extend(faults_after(&words[at + 1..]));
        }
    }
    numbers
}

/// The list of numbers that these words begin with.
fn faults_after(words: &[&str]) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::new();
    let (mut last, mut is_range) = (0, false);
    for word in words {
        let digits = word.trim_end_matches(|letter: char| !letter.is_alphanumeric());
        if let Ok(number) = digits.parse::<usize>() {
            let first = if is_range { last + 1 } else { number };
            numbers.extend((first..=number).map(Number::Fault));
            (last, is_range) = (number, false);
            if !matches!(&word[digits.len()..], "" | ",") {
                break;
            }
        } else if matches!(*word, "and" | "to") && last > 0 {
            is_range = *word == "to";
        } else {
            break;
        }
    }
    numbers
}

/// The tests in a source file, without those that only run when asked for.
fn tests_in(source: &str) -> Vec<Test> {
    let mut tests = Vec::new();
    let (mut is_test, mut is_ignored, mut comment) = (false, false, String::new());
    for line in source.lines().map(str::trim) {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some(rest) = declared {
            let name = rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
            let running = name.filter(|_| is_test && !is_ignored);
            tests.extend(running.map(|name| Test { name: name.to_owned(), comment: comment.clone() }));
        }
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if let Some(text) = line.strip_prefix("//") {
            comment.push(' ');
            comment.push_str(text.trim_start_matches('/'));
        } else if !line.starts_with("#[") {
            (is_test, is_ignored) = (false, false);
            comment.clear();
        }
    }
    tests
}

/// The comments of a source file. One that spans lines is one text.
fn comments_in(source: &str) -> Vec<String> {
    let mut comments = vec![String::new()];
    for line in source.lines().map(str::trim) {
        // Two slashes in a string are no comment; an address of the web is the only such here.
        match line.find("//").filter(|at| !line[..*at].ends_with(':')) {
            Some(at) => {
                if at > 0 {
                    comments.push(String::new());
                }
                let text = line[at..].trim_start_matches(['/', '!']);
                comments.last_mut().expect("not empty").push_str(&format!(" {text}"));
            }
            None => comments.push(String::new()),
        }
    }
    comments
}

/// All Rust files in a directory of the repository.
fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("a directory of the repository");
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            // Build directories hold generated code.
            if !path.ends_with("target") {
                sources(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    DIRECTORIES.iter().for_each(|directory| sources(&root().join(directory), &mut files));
    // This file's own examples cite nothing.
    files.retain(|file| !file.ends_with("tests/lists.rs"));
    files
}

#[test]
fn the_lists_are_whole() {
    let numbers = |rows: Vec<Row>| rows.into_iter().map(|row| row.number).collect::<Vec<_>>();
    assert_eq!(numbers(faults()), (1..=63).map(Number::Fault).collect::<Vec<_>>());
    // R25, R55 and R59 are reserved.
    let of = |list, last, reserved: &[usize]| {
        let numbers = (1..=last).filter(|number| !reserved.contains(number));
        numbers.map(|number| format!("{list}{number}")).collect::<Vec<_>>()
    };
    let mut expected = of('R', 72, &[25, 55, 59]);
    let after = expected.iter().position(|number| number == "R63").expect("in the list") + 1;
    expected.insert(after, "R63a".to_owned());
    expected.extend(of('V', 34, &[]));
    assert_eq!(numbers(rules()), expected.into_iter().map(Number::Rule).collect::<Vec<_>>());
}

#[test]
fn every_row_has_tests_that_cite_it() {
    for Row { number, tests } in rules().into_iter().chain(faults()) {
        for (path, name) in &tests {
            let found = tests_in(&read(&root().join(path)));
            let found = found.iter().find(|test| test.name == *name);
            let test = found.unwrap_or_else(|| panic!("{number:?}: {path} has no test {name} that runs"));
            assert!(test.cites(&number), "{number:?}: {path}: {name} cites it neither in its name nor in its comment");
        }
        if matches!(number, Number::Fault(_)) && !tests.is_empty() {
            assert!(tests.iter().any(|(_, name)| named(name).contains(&number)), "no test has {number:?} in its name");
        }
    }
}

#[test]
fn what_is_not_built_has_no_test() {
    let mut tests = BTreeMap::<Number, Vec<String>>::new();
    for file in all_sources() {
        for test in tests_in(&read(&file)) {
            for number in named(&test.name) {
                tests.entry(number).or_default().push(test.name.clone());
            }
        }
    }
    for Row { number, .. } in rules().into_iter().chain(faults()).filter(|row| row.tests.is_empty()) {
        let named = tests.get(&number);
        assert!(named.is_none(), "{number:?} is in the list as \"{NOT_BUILT}\", and has tests: {named:?}");
    }
}

#[test]
fn every_number_that_is_cited_has_a_row() {
    let rows: BTreeSet<Number> = rules().into_iter().chain(faults()).map(|row| row.number).collect();
    let mut unknown = Vec::new();
    let mut check = |numbers: BTreeSet<Number>, path: &Path| {
        unknown.extend(numbers.difference(&rows).map(|number| format!("{number:?} in {}", path.display())));
    };
    for file in all_sources() {
        let source = read(&file);
        tests_in(&source).iter().for_each(|test| check(named(&test.name), &file));
        comments_in(&source).iter().for_each(|comment| check(cited(comment), &file));
    }
    for document in DOCUMENTS.map(|document| root().join(document)) {
        check(cited(&read(&document)), &document);
    }
    assert!(unknown.is_empty(), "in no list:\n{}", unknown.join("\n"));
}

fn numbers<const R: usize, const F: usize>(rules: [&str; R], faults: [usize; F]) -> BTreeSet<Number> {
    let rules = rules.into_iter().map(|rule| Number::Rule(rule.to_owned()));
    rules.chain(faults.into_iter().map(Number::Fault)).collect()
}

#[test]
fn numbers_are_read_from_names_and_texts() {
    assert_eq!(named("fault_23_no_more_than_65_535_bytes"), numbers([], [23]));
    assert_eq!(named("r26_r70_fault_46_48_a_route_that_r1_changes"), numbers(["R26", "R70"], [46, 48]));
    assert_eq!(named("r27_to_r31_every_ttl"), numbers(["R27", "R28", "R29", "R30", "R31"], []));
    assert_eq!(named("r63a_longer"), numbers(["R63a"], []));
    assert_eq!(named("v6_is_not_carried"), numbers(["V6"], []));
    assert_eq!(named("a_fault_of_8_has_no_number"), numbers([], []));
    assert_eq!(
        cited("R1, R3's words, (R5) and R14 to R16: V2."),
        numbers(["R1", "R14", "R15", "R16", "R3", "R5", "V2"], [])
    );
    assert_eq!(cited("Faults 1, 2 and 24 to 26, and a fault 7: 40 bytes"), numbers([], [1, 2, 7, 24, 25, 26]));
    assert_eq!(cited("no fault, 3 packets; R100, R05, A_R5 and RFC1 and faults"), numbers([], []));
}

#[test]
fn only_tests_that_run_count() {
    let source = "
        /// fault_1_in_a_comment
        fn fault_2_is_no_test() {}

        #[test]
        fn fault_3_is_one() {}

        proptest! {
            /// Whatever,
            /// R9.
            #[test]
            fn r45_fault_4_5_are_two(byte in 0..9) {}
        }

        #[test]
        #[ignore = \"run by another\"]
        fn fault_6_runs_when_asked() {}

        #[tokio::test(flavor = \"current_thread\")]
        // Why.
        #[expect(dead_code)]
        async fn fault_7_is_one() {}
    ";
    let tests: Vec<(String, String)> = tests_in(source).into_iter().map(|test| (test.name, test.comment)).collect();
    let tests: Vec<(&str, &str)> = tests.iter().map(|(name, comment)| (name.as_str(), comment.trim())).collect();
    assert_eq!(
        tests,
        [("fault_3_is_one", ""), ("r45_fault_4_5_are_two", "Whatever,  R9."), ("fault_7_is_one", "Why.")]
    );
}
