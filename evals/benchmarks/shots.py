"""Worked examples for base models, which have no chat template. They are the project's own, in no benchmark."""

from .base import Shot

MATH_SHOTS = (
    Shot(
        "Find the value of $x$ if $3x - 7 = 2x + 5$.",
        "Subtracting $2x$ from both sides gives $x - 7 = 5$. Adding $7$ gives $x = 12$. "
        "The final answer is $\\boxed{12}$.",
    ),
    Shot(
        "A bag holds $4$ red and $6$ blue marbles. Two are drawn without replacement. What is the probability "
        "that both are red?",
        "The first is red with probability $\\frac{4}{10}$, and then the second with probability $\\frac{3}{9}$. "
        "The product is $\\frac{12}{90} = \\frac{2}{15}$. The final answer is $\\boxed{\\frac{2}{15}}$.",
    ),
    Shot(
        "What is the remainder when $7^{10}$ is divided by $8$?",
        "Since $7 \\equiv -1 \\pmod 8$, we have $7^{10} \\equiv (-1)^{10} = 1 \\pmod 8$. "
        "The final answer is $\\boxed{1}$.",
    ),
    Shot(
        "A rectangle has perimeter $26$ and area $40$. Find the length of its diagonal.",
        "With sides $a$ and $b$ we have $a + b = 13$ and $ab = 40$. The square of the diagonal is "
        "$a^2 + b^2 = 13^2 - 2 \\cdot 40 = 89$. The final answer is $\\boxed{\\sqrt{89}}$.",
    ),
)

WORD_PROBLEM_SHOTS = (
    Shot(
        "Mia has 14 stickers. She gives 5 to her brother and buys 2 packs of 6. How many stickers has she now?",
        "After giving 5 away she has 14 - 5 = 9. The packs hold 2 * 6 = 12. Now she has 9 + 12 = 21. "
        "The final answer is $\\boxed{21}$.",
    ),
    Shot(
        "A train ticket costs 8 dollars, and children pay half. What do 2 adults and 3 children pay together?",
        "A child pays 8 / 2 = 4 dollars. Adults pay 2 * 8 = 16 dollars, children 3 * 4 = 12 dollars, together "
        "16 + 12 = 28. The final answer is $\\boxed{28}$.",
    ),
    Shot(
        "Ben reads 15 pages a day from Monday to Friday and 30 pages on each day of the weekend. How many pages "
        "does he read in 2 weeks?",
        "Five days make 5 * 15 = 75 pages and the weekend 2 * 30 = 60, so a week has 75 + 60 = 135. Two weeks "
        "have 2 * 135 = 270. The final answer is $\\boxed{270}$.",
    ),
    Shot(
        "A shop sold 40 loaves in the morning and 25% more in the afternoon. How many did it sell that day?",
        "A quarter of 40 is 10, so it sold 40 + 10 = 50 in the afternoon and 40 + 50 = 90 that day. "
        "The final answer is $\\boxed{90}$.",
    ),
)
