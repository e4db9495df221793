"""Facts of an invented project, the questions about them, and which of them a later fact replaces."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """What is stored, the phrase that shows that it was found, and a question that it answers."""

    text: str
    key: str
    question: str
    newer: str = ""
    """A text of a later day that replaces it."""
    newer_key: str = ""


FACTS = (
    Fact("We deploy production to Heroku from the main branch.", "to Heroku", "Where do we deploy production?",
         "Decision changed: production now runs on Hetzner, not on Heroku.", "runs on Hetzner"),
    Fact("The API rate limit is 100 requests a minute per key.", "100 requests", "What is the API rate limit?",
         "The API rate limit was raised to 250 requests a minute per key.", "250 requests"),
    Fact("Ola is on call this week.", "Ola is", "Who is on call?", "Pekka took over on call from Ola.", "Pekka took"),
    Fact("The release is planned for 14 May.", "14 May", "When is the release?",
         "The release moved to 28 May because of the audit.", "28 May"),
    Fact("Sessions expire after 30 minutes of inactivity.", "30 minutes", "After how long do sessions expire?",
         "Sessions now expire after 12 hours of inactivity.", "12 hours"),
    Fact("We use MySQL 8 for orders.", "MySQL 8", "Which database do we use for orders?",
         "Orders were migrated to Postgres 16; MySQL is gone.", "Postgres 16"),
    Fact("The staging URL is stage.kestrel.test.", "stage.kestrel.test", "What is the staging URL?",
         "Staging moved: its URL is now try.kestrel.test.", "try.kestrel.test"),
    Fact("Uploads may be up to 10 MB.", "10 MB", "How large may uploads be?",
         "The upload limit is now 40 MB.", "40 MB"),
    Fact("The design review is on Wednesdays at ten.", "Wednesdays", "When is the design review?",
         "The design review moved to Fridays at nine.", "Fridays at nine"),
    Fact("CI runs on Node 18.", "Node 18", "Which Node version does CI use?",
         "CI was switched to Node 22.", "Node 22"),
    Fact("The mobile app must support iOS 14.", "iOS 14", "Which iOS version must the app support?",
         "The oldest supported iOS is now 16.", "iOS is now 16"),
    Fact("Invoices are rounded half to even.", "half to even", "How are invoices rounded?"),
    Fact("Passwords are hashed with Argon2id.", "Argon2id", "How are passwords hashed?"),
    Fact("The customer Brightwater needs the export in semicolon CSV.", "semicolon CSV",
         "Which export format does Brightwater need?"),
    Fact("Feature flags live in config/flags.toml.", "config/flags.toml", "Where are the feature flags?"),
    Fact("The payment provider is Mollie.", "Mollie", "Which payment provider do we use?"),
    Fact("Images are resized to 1600 pixels on upload.", "1600 pixels", "To what size are images resized?"),
    Fact("The search index is rebuilt every night at 02:30.", "02:30", "When is the search index rebuilt?"),
    Fact("Henrik signs off on legal texts.", "Henrik", "Who approves legal texts?"),
    Fact("The budget for contractors is 8,000 euros a month.", "8,000 euros", "What is the budget for contractors?"),
    Fact("Logs are kept for 45 days.", "45 days", "How long are logs kept?"),
    Fact("Errors are sent to Sentry, project kestrel-web.", "kestrel-web", "Where do errors go?"),
    Fact("The admin panel is reachable only through the VPN.", "through the VPN", "How do I reach the admin panel?"),
    Fact("Database migrations need two approvals.", "two approvals", "How many approvals do migrations need?"),
    Fact("The cache key includes the tenant id, after the leak in March.", "tenant id", "What is in the cache key?"),
    Fact("Dates are shown as day.month.year for German users.", "day.month.year", "How are dates shown to Germans?"),
    Fact("The flaky test test_cart_merge depends on the clock.", "test_cart_merge", "Which test is flaky?"),
    Fact("Webhooks are retried for 72 hours.", "72 hours", "How long are webhooks retried?"),
    Fact("Saga wrote the importer and knows its quirks.", "Saga wrote", "Who knows the importer?"),
    Fact("The monorepo is built with Bazel.", "Bazel", "How is the monorepo built?"),
    Fact("Translations come from Lokalise every Monday.", "Lokalise", "Where do translations come from?"),
    Fact("We decided against GraphQL because of caching.", "against GraphQL", "Why is there no GraphQL?"),
    Fact("The PDF renderer leaks memory above 200 pages.", "200 pages", "When does the PDF renderer leak memory?"),
    Fact("Support answers within four hours on workdays.", "four hours", "How fast does support answer?"),
    Fact("The primary colour is #0B6E4F.", "#0B6E4F", "What is our primary colour?"),
    Fact("Backups are tested on the first Thursday of a month.", "first Thursday", "When are backups tested?"),
    Fact("Order numbers begin with KS and the year.", "begin with KS", "How do order numbers begin?"),
    Fact("The load test reached 1,900 orders a minute.", "1,900 orders", "What did the load test reach?"),
    Fact("Emails are sent through Postmark.", "Postmark", "Which service sends our emails?"),
    Fact("The security audit is done by Nordsec.", "Nordsec", "Who does the security audit?"),
    Fact("Currency conversion uses the rates of the ECB.", "rates of the ECB", "Which exchange rates do we use?"),
    Fact("Deleted accounts are purged after 14 days.", "14 days", "When are deleted accounts purged?"),
    Fact("The kiosk app runs on Android 11 tablets.", "Android 11", "On what does the kiosk app run?"),
    Fact("Pull requests are merged by squash.", "by squash", "How are pull requests merged?"),
    Fact("The team lunch is in the canteen on Tuesday.", "canteen", "Where is the team lunch?"),
)  # fmt: skip

AGAIN = (
    ("Which hosting provider does production run on?", 0),
    ("How many requests may a key make?", 1),
    ("Who do I call when something breaks tonight?", 2),
    ("When do we ship?", 3),
    ("How long does a login last without activity?", 4),
    ("What stores our orders?", 5),
    ("What is the biggest file a user may upload?", 7),
    ("Which tool compiles the repository?", 29),
    ("What format did Brightwater ask for?", 13),
    ("Where can I see exceptions of the web app?", 21),
)
"""Second questions about facts, by their number."""
