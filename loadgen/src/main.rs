//! `parallax`: load on a server that runs, what can be done with a saved report, and tokens.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use parallax_loadgen::{
    cli,
    render::{self, Table},
    report::Report,
};

/// Load on services, and reports that see it from both sides.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::doc_markdown, reason = "these are the words of --help")]
enum Command {
    /// Load a server, and say whether it holds its requirements
    ///
    /// Without flags 10 users ask for the URL, for 10 s after 1 s of warm-up.
    ///
    /// Examples:
    ///   parallax run http://localhost:3000/search?q=tea
    ///   parallax run http://localhost:3000/ --rate 2000 --threshold 'p99 < 25ms'
    ///   parallax run https://localhost:3000/ --ca ca.pem --stages 10s:100,30s:1000
    ///   parallax run unix:/run/app.sock:/ --users 50 --think-time exp:100ms
    ///   parallax run http://localhost:3000/ --method POST --body-file item.json \
    ///     --header 'Content-Type: application/json'
    ///
    /// Exit: 0 pass, 1 unexpected error, 2 bad usage or nobody there, 97 invalid,
    /// 98 inconclusive, 99 a threshold failed, 130 interrupted (Ctrl-C: the report
    /// is still written; again to quit at once)
    #[command(verbatim_doc_comment)]
    Run(Box<cli::UrlArgs>),
    /// Print a saved report; exits as the run that wrote it did
    ///
    /// What is printed is to the byte what the run wrote: report.html, report.md, junit.xml and the tables.
    ///
    /// Examples:
    ///   parallax render target/parallax/report.json
    ///   parallax render report.json --width 132 | less
    ///   parallax render report.json --format html > report.html
    ///   parallax render report.json --format csv --table timeline > timeline.csv
    ///   parallax render report.json --format markdown | gh pr comment --body-file -
    ///   parallax render report.json --format junit > junit.xml
    #[command(verbatim_doc_comment)]
    Render(Render),
    /// Mint a token that lets load past a service's limiter, and print it
    ///
    /// Send it in the header x-parallax-bypass. The key is one of the service's, written ID:SECRET, from
    /// PARALLAX_BYPASS_KEY or a file; never from an argument, which other users of the machine could see.
    ///
    /// Examples:
    ///   (umask 077; echo "ci:$(openssl rand -hex 32)" > bypass.keys)
    ///   parallax token --key-file bypass.keys --expires 10m --method GET --path /search
    ///   parallax token --key-file bypass.keys | sed 's/^/x-parallax-bypass: /' > bypass.header
    ///   curl -H @bypass.header http://localhost:3000/search
    #[command(verbatim_doc_comment)]
    Token(cli::TokenArgs),
    /// Print a script that completes this command's words in a shell
    ///
    /// Examples:
    ///   source <(parallax completions bash)
    ///   parallax completions fish > ~/.config/fish/completions/parallax.fish
    #[command(verbatim_doc_comment)]
    Completions {
        /// Of which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct Render {
    /// A report.json
    #[arg(value_hint = ValueHint::FilePath)]
    report: PathBuf,
    /// What to make of it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// With csv: which table [default: routes]
    #[arg(long, value_enum)]
    table: Option<Table>,
    /// With text: columns, from 80 to 160; from 110 on there are more figures [default: the terminal's, or 80]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// No colours, on a terminal either
    #[arg(long)]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// As it was saved
    Json,
    /// A table for a spreadsheet or a script: see --table
    Csv,
    /// A comment on a pull request
    Markdown,
    /// A page that needs nothing else
    Html,
    /// Test results for continuous integration
    Junit,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Render(args) => render(&args),
        Command::Run(args) => cli::run(*args),
        Command::Token(args) => cli::token(args),
        Command::Completions { shell } => completions(shell),
    }
}

fn render(args: &Render) -> ExitCode {
    let Render { format, table, width, .. } = *args;
    for (given, flag, of) in
        [(table.is_some(), "--table", Format::Csv), (width.is_some(), "--width", Format::Text)]
    {
        if given && format != of {
            let of = format!("{of:?}").to_lowercase();
            eprintln!("error: {flag} is for --format {of}");
            return ExitCode::from(2);
        }
    }
    let report = match Report::read(&args.report) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let text = match format {
        Format::Text => render::text(&report, cli::style(args.no_color, width)),
        Format::Json => render::json(&report),
        Format::Csv => render::csv(&report, table.unwrap_or(Table::Routes)),
        Format::Markdown => render::markdown(&report),
        Format::Html => render::html(&report),
        Format::Junit => render::junit(&report),
    };
    match cli::print_whole(&text) {
        Ok(()) => cli::exit_code(&report),
        Err(error) => {
            eprintln!("error: cannot print the report: {error}");
            ExitCode::from(1)
        }
    }
}

fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "parallax", &mut script);
    match cli::print_whole(&String::from_utf8_lossy(&script)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot print the script: {error}");
            ExitCode::from(1)
        }
    }
}
