r"""Kinds of answer that were once merged falsely, or not merged, each as literal spellings.

A line is ``spelling == spelling == ...``, all one answer, or ``spelling # spelling # ...``, all different answers.
"""

# ruff: noqa: E501, RUF001 - one line an answer; signs and letters of other scripts are meant

from __future__ import annotations

import itertools

import pytest

from arrol_tts.answers import answers_equal

KINDS: dict[str, str] = {
    "the constant e": r"""
3\mathrm{e} # 3 # 3e+1
\frac{\mathrm{e}}{3} == \frac{e}{3} == \frac13 e
\mathrm{e}^{2}+1 == e^2+1
4\text{n} # 4
4\text{x} == 4x == x\cdot 4
7\mathbf{v} # 7 # 8\mathbf{v}
3\mathbf{i}+4\mathbf{j} # 4+3i # 3+4i
2+\mathbf{i} == 2+i
e^{-400} # e^{-401} # 0
10^{-200}\pi # 10^{-201}\pi # 0
\sqrt{3}+10^{-50} # \sqrt{3}
\frac{\sqrt{2}}{900!} # \frac{\sqrt{2}}{901!}
""",
    "degrees": r"""
\sin 30^\circ == \sin(30^{\circ}) == \sin 30° == \sin 30 \text{ degrees} == 0.5
\cos 60^\circ # \cos 60
\tan 45^\circ == 1
\sin^2 30^\circ == \frac14
\cos(90^\circ - 30^\circ) == \frac12
75^\circ == 75 == 75 degrees == 75°
30^\circ\text{C} == 30 == 30℃ == 30°C
180^\circ - x = 180 - x
""",
    "and, or": r"""
x>1 and x<4 == (1,4) == 1<x<4 == x<4 \text{ and } x>1
x>1 and x<4 # x>1 or x<4
x<1 or x>4 == (-\infty,1)\cup(4,\infty) == x>4, x<1
x<1 or x>4 # (1,4)
x \le -2 \text{ or } x \ge 2 == |x| \ge 2
|x| < 2 == (-2,2) == -2 < x < 2
x > 0, x \ne 3 == (0,3)\cup(3,\infty)
""",
    "statements with a domain": r"""
f(x)=2x \text{ for all } x # f(x)=3x \text{ for all } x
f(x)=2x \text{ for all real } x == 2x == f(x)=2x \quad \forall x \in \mathbb{R}
f(n)=n+1 \text{ for all } n \in \mathbb{N} # f(n)=n+2 \text{ for all } n \in \mathbb{N}
a_n = 3^n \text{ for } n \ge 2 # a_n = 3^n \text{ for } n \ge 3
x = k\pi, k \in \mathbb{Z} == k\pi \text{ where } k \in \mathbb{Z} == x = n\pi \ (n \in \mathbb{Z}) == m\pi, m\in\mathbb{Z}
x = k\pi, k \in \mathbb{Z} # x = 2k\pi, k \in \mathbb{Z} # x = k\pi
\frac{\pi}{3}+k\pi \quad k \in \mathbb{Z} # \frac{\pi}{6}+k\pi \quad k \in \mathbb{Z}
\{3^k \mid k \in \mathbb{N}\} # \{5^k \mid k \in \mathbb{N}\} # \{3^k\}
\{2n+1 : n \in \mathbb{Z}\} == \{2k+1 : k \in \mathbb{Z}\}
3k, k \text{ is an integer} == 3m, m \in \mathbb{Z}
\text{all odd } n # \text{all even } n # n
2x \text{ if } x > 0 # 2x \text{ if } x < 0
""",
    "words that are no units": r"""
2 thirds # 2 # 3 thirds
10 cubed # 10 # 1000
4 squared # 4
6 factorial # 6
3 dozen # 3
3 halves # 3
4 tenths # 4
30% increase # 30% decrease # 30%
15\% \text{ profit} # 15\% \text{ loss}
4 units up # 4 units down # 4
5 metres above # 5 metres below
3 more # 3 less # 3
6 years older # 6 years younger
5 or more # 5
at most 5 # 5 # at least 5
less than 8 # 8 # more than 8
3 apples more # 3
3 millones # 3
4 mil # 4
2 Milliarden # 2
4 prime # 4
3xyz # 3
3abc # 3
12 men # 12 women and 3 men
1 hour 20 minutes # 1 hour 20 seconds # 1 # 20
2 feet 3 inches # 2 feet 4 inches # 2
3 dollars and 20 cents # 3, 20
2 \text{ hours and } 5 \text{ minutes} # 2, 5
""",
    "words for powers of ten": r"""
3 million == 3000000 == 3 \text{ million} == 3 million people == 3 million square miles
2.5 billion dollars == 2500000000 == \$2.5 billion
5 lakh == 500000
2 crore == 20000000
4 hundred == 400
3 hundred thousand == 300000
5万 == 50000
2亿 == 200000000
""",
    "names in inequalities": r"""
a<b # a<c # b<a
a<b == b>a
a<b<c # a<c<b
a<b<c == c>b>a
x>a == a<x == (a,\infty)
x>a # x>b
p \le q # p < q
""",
    "dates, times, Roman numerals": r"""
2023-01-02 # 2020 # 2023-02-01 # 2020
07/04/21 # \frac{7}{84} # 07/04/22
5/6/2020 == 05/06/2020
5/6/2020 # 6/5/2020
45-45-90 # -90
IX # XI
\text{XL} # \text{LX}
\text{I and II} # \text{I and III}
\text{I and II} == \text{II and I}
7:15 AM == 7:15 a.m. == 7:15 \text{ am} == 07:15 AM
7:15 AM # 7:15 PM # 7:15
3:4:5 # 3:5:4
3 : 4 == 3:4
""",
    "text": r"""
\text{Pythagorean theorem} == Pythagorean theorem == pythagorean theorem == \textbf{Pythagorean Theorem}
\text{acute triangle} # \text{obtuse triangle}
\text{ West. } == West == west
\text{no solutions} == No solution == \text{No Solution.}
\text{no real solutions} == no real solution
\text{no solution} # \text{one solution}
\text{Tom and Ann} == Ann and Tom == \text{Ann, Tom}
\text{Tom and Ann} # Tom
\text{yes} == YES == \textbf{Yes} == **Yes**
\text{right-angled} == right angled
\text{not prime} # \text{prime}
True # False
cat # act
""",
    "names": r"""
|CD| = 7 # 8
|CD| = 7 == 7 == CD = 7
""",
    "European numbers, digits": r"""
2 345,67 == 2345.67 == 2.345,67 == 2,345.67
1.234.567 == 1234567 == 1 234 567 == 1,234,567 == 1{,}234{,}567
３４ == 34
٣٤ == 34
４．５ == 4.5
1，234 == 1234
1,200, 1,300 == 1300, 1200
1,200, 1,300 # 1,200
(1,200) # 1200
3.141 # 3141
""",
    "fractions and powers in Unicode": r"""
⅓ == \frac13 == 1/3
1⅔ == 5/3 == 1\frac23
-⅝ == -0.625
3⁄4 == 0.75
10⁴ == 10000
1.5×10⁻² == 0.015
x³−1 == x^3-1
2²⁰ # 2
aⁿ == a^n
110₂ == 110_2 == 110_{2}
""",
    "repeating decimals": r"""
0.(3) == 1/3 == 0.\overline{3} == 0.\dot{3} == 0.333...
12.(6) == 38/3
0.1(6) == \frac16 == 0.1666... == 0.1\overline{6} == 0.16666\ldots
0.(27) == 3/11 == 0.\overline{27} == 0.2727\ldots == 0.\dot{2}\dot{7}
0.\dot{1}4285\dot{7} == 1/7
0.(3) # 0.3
3.14... # 3.14 # 3
1.41421... # 1.41421
0.\overline{12} # 0.12
""",
    "units": r"""
3cm == 3 == 3 cm == 3\text{cm} == 3\mathrm{\,cm} == 3 \text{ cm}^2 == 3 cm³
12元 == 12 == 12 元
5厘米 == 5 == 5米
60度 == 60
5 см == 5
7 руб == 7
300円 == 300
₹700 == 700 == Rs. 700 == INR 700
US$60 == 60 == 60 USD == \$60 == 60 dollars
€25 == 25 == 25 euros
5 kJ/mol == 5 == 5\text{ kJ mol}^{-1}
8 μm == 8 == 8\,\mu\text{m}
80 \frac{\text{km}}{\text{h}} == 80 == 80 km/h == 80 \text{ km/h}
6 N == 6 == 6\text{ N}
6n # 6
9 m/s == 9 == 9\text{ m/s}
3m # 3
12\pi cm == 12\pi
12\sqrt{2} \text{ cm} == 12\sqrt2
5 per hour == 5 == \$5 per hour
18 eggs == 18
9 clips a day == 9
\frac{5}{8}\text{ of the cake} == 5/8
4 cm # 5 cm
3rd == 3 == 3^{rd} == 3^{\text{rd}} == 3\text{rd}
22nd == 22
11th == 11 == 11^\text{th}
1.5e3 J == 1500
6.02e23 \text{ mol}^{-1} == 6.02\times 10^{23}
""",
    "per cent": r"""
25 pct == 25\% == 0.25 == 25 percent == 25 per cent == 25 \text{ percent}
12\frac12\% == 0.125
25\% # 25
5 % 0 # 5
""",
    "bases": r"""
(101)_2 == 101_2 == 101_{(2)} == 101 base 2 == 101 \text{ base } 2 == 101_{\text{two}}
101_2 # 101_3 # 5 # 101
\text{1F}_{16} == 1F_{16}
x_2 # x_3
""",
    "binomials and factorials": r"""
\binom{6}{2} == 15 == {6 \choose 2} == C(6,2) == \dbinom62 == \frac{6!}{4!2!}
7!! == 105
7!! # (7!)!
6!! == 48
\gcd(12,18) == 6
\max(3,9,4) == 9
\text{lcm}(4,6) == 12
""",
    "colours, bold, layout": r"""
\color{red}{8} == 8 == \textcolor{blue}{8} == {\color{red} 8}
**8** == 8 == `8` == \underline{8} == \mathbf{8} == \textbf{8}
**x=8** == 8
{\displaystyle \frac{1}{3}} == \frac13
\left.\frac13\right. == 1/3
2 \ast 5 == 10 == 2•5 == 2 · 5
\boxed{8} == 8
8. == 8
""",
    "lists of roots, plus-minus": r"""
x_1 = 2, x_2 = 5 == 2, 5 == x = 2, x = 5 == x=2 \text{ or } x=5 == x_{1}=5, x_{2}=2
x_1 = 2, x_2 = 5 # x_1 = 2, x_2 = 6
a_1 = 2, a_2 = 5 # a_1 = 5, a_2 = 2
\pm 2 \pm i == 2+i, 2-i, -2+i, -2-i
x = 3 \pm \sqrt{2} == 3+\sqrt2, 3-\sqrt2 == \{3 \pm \sqrt2\}
a \pm b \mp c == a+b-c, a-b+c
(\pm 2, 0) == (2,0),(-2,0)
-4,-4 # -4
3 \text{ or } 3 == 3
x = y = 4 == 4
p=1, q=2 # p=2, q=1 # 1, 2
""",
    "equations": r"""
y=x == x=y
3x-6y+12=0 == y=\frac{x}{2}+2 == x - 2y = -4 == 2y = x+4
y=3x+1 # x=3y+1
x=2y-4 == y=\frac{x+4}{2}
y-1=2(x-3) == y=2x-5
x+y=7 == y=7-x == x=7-y
x^2+y^2=9 == y^2=9-x^2
(x-1)(x-4)=0 == x^2-5x+4=0
|x| = 5 == x = \pm 5 == 5, -5
\sqrt{x^2} == x
|x| == x
\sqrt{4x^2} == 2x
|x-1| == |1-x|
|x^2+1| == x^2+1
\sqrt{(x-7)^2} == |x-7|
\sqrt{(x-7)^2} == |7-x|
\sqrt{4(x-7)^2} == 2|x-7|
\sqrt{x^2 y} == x\sqrt{y}
(\sqrt{x})^2 == x
\lceil n/2\rceil == \lfloor (n+1)/2\rfloor
\lfloor n\rfloor == n
\max(x,y) == \frac{x+y+|x-y|}{2}
|x-5|=2 == |5-x|=2
\sqrt{x^2+2x+1} == x+1
\sqrt[4]{x^4} == x
|x|=5 == x=\pm 5
|x|<2 == (-2,2)
\gcd(n,12) == \gcd(12,n)
\frac{n!}{(n-1)!} == n
|n-100| == |100-n|
\frac{1}{\sqrt{x^2}} == \frac1x
\sqrt{x^2+1} == \sqrt{1+x^2}
2x+\sqrt{2}=4 == x=2-\frac{\sqrt2}{2}
x^2-y^2 == (x-y)(x+y)
\sqrt{12x^2y} == 2x\sqrt{3y}
\frac{\sqrt{x^2}}{2} == x/2
x^2 = 16 == x=\pm 4
m+n = 15 == 15
a+b+c = 9 == 9
pq = 12 == 12
2x = 10 # 10
x + 3 = 10 == 7
\frac{x-1}{2}=\frac{y}{3} # \frac{x-1}{2}=\frac{y}{4}
\frac{x}{2}=\frac{y}{3}=\frac{z}{4} # \frac{x}{2}=\frac{y}{5}=\frac{z}{4}
f(2) = 3+4 = 7 == 7
x - x + 5 == 5
\frac{3x}{x} == 3
\sin^2 t+\cos^2 t == 1
""",
    "matrices": r"""
\left[\begin{array}{cc}1&2\\3&4\end{array}\right] == \begin{bmatrix}1&2\\3&4\end{bmatrix} == \begin{pmatrix}1 & 2\\ 3 & 4\\ \end{pmatrix} == \begin{smallmatrix}1&2\\3&4\end{smallmatrix}
\frac12\begin{pmatrix}2&4\\6&8\end{pmatrix} == \begin{pmatrix}1&2\\3&4\end{pmatrix}
-\begin{pmatrix}1\\2\end{pmatrix} == \begin{pmatrix}-1\\-2\end{pmatrix}
\begin{vmatrix}1&2\\3&4\end{vmatrix} # \begin{pmatrix}1&2\\3&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} == (1,2)^T
\begin{pmatrix}1\\2\end{pmatrix} # (1,2) # (1,3)^T
""",
    "sets and intervals": r"""
\mathbb{R} \setminus \{3\} == (-\infty,3)\cup(3,\infty) == x \ne 3 == x \neq 3 == \{x \in \mathbb{R} \mid x \ne 3\}
\{1,2\} \cup \{2,3\} == \{1,2,3\}
\{1, |2-4|, 3\} == \{1,2,3\} == \{1, 1+|0-1|, 3\}
[0,2] \cap [1,3] == [1,2]
(0,2)\cup(1,3) == (0,3)
]0,2[ == (0,2)
]0,2] == (0,2]
[0,2[ # (0,2]
\{x \in \mathbb{R} \mid 1 \le x < 2\} == [1,2) == 1 \le x < 2
\{x : x > 5\} == (5,\infty) == x>5 == 5<x
3x > 12 == x>4
-2x \ge 6 == x \le -3
1 < 2x+1 < 5 == (0,2)
x \in \mathbb{R} == (-\infty,\infty) == \mathbb{R}
\{\} == \emptyset == \varnothing
\{0\} # \emptyset
[1,2] # (1,2) # [1,2)
""",
    "products": r"""
mgh == m g h == m\cdot g\cdot h == hgm
2xyz == 2 x y z == 2\times x\times y\times z
k(k+2) == k^2+2k
P(1+r) == P+Pr
f(3) # 3f
f(x+1) # f(x)+1
g(2) # 2g
n2^n == n\cdot 2^n
a_{12} # a_1 2
\sqrt[3]{x}^2 == x^{2/3}
2^{-y} == 2^-y
sinx == \sin x
x2 # 2x
1 2 # 12 # 2
3 1/2 == 3.5
3\frac12 == 3.5
""",
    "everyday spellings": r"""
45° == 45 degree == 45^\circ == 45 deg
\frac{\pi}{2} rad == \pi/2
12.50 USD == 12.5
£12.50 == 12.5
¥500 == 500
1,234,567.89 == 1234567.89
0.1\overline{6} == 1/6
2.3\overline{45} == 129/55
5.0\times10^{-3} == 0.005
3 x 10^8 == 300000000
3.0E8 == 300000000
5 \cdot 10^2 == 500
{1\over 2} == 1/2
\frac{1}{2} \text{ units} == 0.5
x \in \{1, 2\} == 1, 2
x \in (1, 2] == 1 < x \le 2
\{x | x \leq 3\} == (-\infty, 3]
(-\infty, \infty) == \mathbb{R} == \text{all real numbers} == all real numbers
x=2\quad\text{or}\quad x=3 == 2,3
x = 2 \lor x = 3 == 2,3
2 \text{ and } 3 == 2, 3
(1,2), (3,4) == (3,4), (1,2)
\left\{(1,2)\right\} == (1,2)
\text{A and B} == \text{B and A}
\sqrt{50} == 5\sqrt2
\sqrt[3]{16} == 2\sqrt[3]{2}
\frac{\sqrt{6}}{3} == \sqrt{\frac{2}{3}}
e^{i \pi / 2} == i
\cos(\pi/3) == 1/2
\ln(e^3) == 3
\log_{10} 1000 == 3
\tan(\pi/4) == 1
\frac{a^2-b^2}{a-b} == a+b
(x+1)^2 == x^2+2x+1
2(x+3) == 2x+6
\frac{x^2-1}{x+1} == x-1
a^{m+n} == a^m a^n
\sqrt{a^2b} == a\sqrt{b}
\log(ab) == \log a + \log b
n(n+1)/2 == \frac{n^2+n}{2}
y = -2x+1 == 2x+y=1
y=mx+b == mx+b
v = \sqrt{2gh} == \sqrt{2gh}
F = ma == ma
A = \pi r^2 == \pi r^2
x^2 + y^2 = 4 == y^2 + x^2 - 4 = 0
\begin{pmatrix} 1/2 \\ 2 \end{pmatrix} == \begin{bmatrix} 0.5 \\ 2 \end{bmatrix}
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} == \left(\begin{matrix} 1 & 0 \\ 0 & 1 \end{matrix}\right)
7 \pmod{12} == 7 \pmod {12}
10:30 am == 10:30 AM
\$1{,}500 == 1500
3 \text{ m/s}^2 == 3
9.81\,\mathrm{m\,s^{-2}} == 9.81
5\times 10^{3}\ \mathrm{kg\,m^{2}} == 5000
2\frac{3}{4} \text{ cups} == 2.75
1:2 == 1 : 2
100\,000 == 100000
\text{(i) } 5 == \text{(i)} 5
+5 == 5
5.000 == 5
\text{Yes.} == yes
\text{TRUE} == true
(x,y)=(1,2) == (1,2)
x=1, y=2 == y = 2, x = 1
f(x) = \frac{1}{x} == \frac1x
C_5^2 == C_5^2
|-5| == 5
\left| -5 \right| == 5
\lfloor 2.7 \rfloor == 2
\min(3, 5) == 3
5! == 120
\frac{7!}{5!} == 42
-(x-1) == 1-x
[0, +\infty) == x \ge 0
k \in \mathbb{Z} == k \in \mathbb{Z}
\frac{\pi}{6} + 2k\pi, k\in\mathbb{Z} == \frac{\pi}{6} + 2n\pi, n\in\mathbb{Z}
x = \frac{\pi}{6} + k\pi \text{ for any integer } k == \frac{\pi}{6} + m\pi, m \in \mathbb{Z}
5 \text{cm}^3 == 5 cm^3
25\,\% == 25\%
0.5\% == 0.005
twelve == Twelve
x\leq 5 == x <= 5
x \geqslant 5 == x >= 5
4\,\text{or}\,5 == 4, 5
1 + \frac{1}{\sqrt 2} == 1+\frac{\sqrt2}{2}
{-}5 == -5
-\frac{1}{2} == \frac{-1}{2} == -0.5 == - 1/2 == \frac{1}{-2}
\frac{1}{2}, \frac{1}{3} == 1/3, 1/2
10 \% == 0.1
2^{1/2} == \sqrt{2}
64^{\frac{1}{3}} == 4
0.\overline{142857} == \frac{1}{7}
5 hours == 5
12 V == 12
3 kg == 3 kilograms
50 mL == 50
20 km/h == 20 km per hour
5 people == 5
7 days == 7
30 minutes == 30
45 sq cm == 45
4 units == 4
6 \text{ square meters} == 6
2\sqrt{3} \text{ units} == 2\sqrt3
٥٠ == 50
12 кг == 12
15 人 == 15
3天 == 3
100日元 == 100
第3 == 第3
a = 3 == 3
\theta = 30^\circ == 30
\angle BAC = 30^\circ == 30
AB = 3\sqrt2 == 3\sqrt2
\overline{AB} = 5 == 5
P(X=2) = \frac{3}{8} == 3/8
E(X) = 3 == 3
\text{P}(A) = 0.3 == 0.3
\text{Var}(X) = 2 == 2
\mu = 3 == 3
S_n = n^2 == n^2
a_n = 2n-1 == 2n-1
a_{10} = 19 == 19
f(f(x)) = x == x
|z| = 5 == |z| = 5
|\vec{a}| = 5 == 5
\gcd(a,b) = 6 == 6
\frac{AB}{CD} = 2 == 2
x:y = 2:3 == 2:3
\text{Area of } \triangle ABC = 6 == 6
""",
    "answers that look alike": r"""
2e # 2 # e
5\text{k} # 5
3\text{y} # 3
2 quarters # 2
3 fifths # 3
5 minus # 5
100 below # 100
3 north # 3 south
10 off # 10
4 remaining # 5 remaining
1 hour # 2 hours
x<2 and x>5 # x<2 or x>5
\sin 45 # \sin 45^\circ
\cos 60° # \cos 60
f(x)=x^2 # f(x)=x^3
f(x)=x \text{ or } f(x)=-x # f(x)=x
x=1 \text{ only} # x=2 \text{ only}
\text{increasing} # \text{decreasing}
\text{odd} # \text{even}
\text{at most } 3 # \text{at least } 3
3 \text{ at most} # 3
10^{-150} # 0
e^{-1000} # 0
\frac{1}{1000!} # 0
1 + 10^{-60} # 1
\pi + 10^{-60} # \pi
10^{100}+1 # 10^{100}
x^{10}+10^{-30} # x^{10}
\cos(10^{-100}) # 1
(1,2) # [1,2] # 1,2
\{1,2\} # (1,2)
x>1 # x\ge 1 # x<1
(-1)^n # (-1)^{n+1} # 1
\lfloor x \rfloor # \lceil x \rceil # x
R # r
\text{a} # \text{b}
A # a
B # D
AB # CD
\triangle ABC # \triangle DEF
\overline{AB} # \overline{CD} # AB
p # \neg p
p \land q # p \lor q
p \to q # q \to p
A \subset B # B \subset A
A \cup B # A \cap B
1 \pmod 3 # 2 \pmod 3
x \equiv 1 \pmod 3 # x \equiv 1 \pmod 4
2024-05-06 # 2013
12/25/2020 # 12/26/2020
IV # VI
XII # XIII
10:30 # 10:31
3:2 # 2:3
\int x dx # \int y dx
\sum_{k=1}^n k # \sum_{k=1}^n k^2
\sum_{k=1}^n k^2 # \prod_{k=1}^n k^2
\frac{dy}{dx} # \frac{dx}{dy}
y' = y # y'' = y
y'+y=0 # y'-y=0
\vec{a} # \vec{b}
a \times b # a / b
\hat{x} # \bar{x}
x_1 # x_2
x^{2n} # x^{2m}
\log 5 # \ln 5
\log_2 5 # \log_3 5
2 < x < 3 # 2 < x < 4
2 < x \le 3 # 2 \le x < 3
\mathbb{R} # \mathbb{Z} # \mathbb{Q} # \emptyset
\mathbb{R}^+ # \mathbb{R} # \mathbb{R}^-
\mathbb{Z}^+ # \mathbb{Z}
\infty # -\infty
\text{DNE} # 0 # \infty
n = 3k # n = 3k + 1
n=3k, k\in\mathbb{N} # n=3k, k\in\mathbb{Z}
\text{if } x>0 # \text{if } x<0
2x \text{ if } x>0, -2x \text{ otherwise} # 2x
\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases} # \begin{cases} x & x>0 \\ 0 & x \le 0 \end{cases}
\begin{pmatrix}1&2\\3&4\end{pmatrix} # \begin{pmatrix}1&3\\2&4\end{pmatrix}
5 cm^2 # 6 cm^2
\frac{2}{3} \text{ of } x # 2/3
3 \text{ dozen} # 3
5 score # 5
two # three # 2
3 pairs # 3
5% # 5
0.5% # 0.5
1.2.3 # 1.23
192.168.1.1 # 192.168.1.2
v1.2 # v1.3
O(n) # O(n^2)
O(n \log n) # O(n)
H_2O # H_2O_2
NaCl # KCl
CO_2 # CO
C_6H_{12}O_6 # C_6H_{12}O_5
1101_2 # 1101_3 # 1101
x = y # x = z
3a + 2b = 5 # 3a+2b=6
\text{Tom} # \text{Tim}
left # right
east # west
$a$ # $b$
2\,\text{a} # 2
12 \text{ pi} # 12
5 i # 5
3 j # 3
4 k # 4
1, 2, 3, \ldots # 1, 2, 3
1, 2 # 1, 2, 2
\pm 5 # 5 # -5
(\pm 1, 2) # (1, 2)
""",
    "more that look alike": r"""
5 apples # 5 apples and 3 oranges
2 m # 2
3x # 3
10 a.m. # 10 p.m.
$5 # $6
5 to 3 # 5 to 4 # 5
from 3 to 5 # 3, 5
between 3 and 5 # 3, 5
5 and a half # 5
one half # 1
3 1/2 # 3, 1/2 # 31/2
1/2/3 # 1/6
6/2(1+2) # 9
2^3^2 # 64
3.14 # 22/7
5 ± 0.1 # 5
5.0 \pm 0.1 # 5.0
x = 5 \pm 0.1 # 5
(5, 3) # 5, 3
A = 5, B = 3 # A = 3, B = 5
A: 5, B: 3 # A: 3, B: 5
\text{A: 5} # \text{A: 6}
first # second
1st # 2nd
Day 5 # Day 6
Option A # Option B
Figure 2 # Figure 3
the 5th # the 6th
5% of 20 # 5%
20% off # 20%
5 percent more # 5 percent less
a 5% gain # 5%
2x+3y # 2y+3x
x^2 y # x y^2
\sqrt{x+y} # \sqrt{x}+\sqrt{y}
\sqrt{2}x # \sqrt{2x}
\frac{1}{x+1} # \frac{1}{x}+1
1/x+1 # 1/(x+1)
\sin(x)^2 # \sin(x^2)
\sin^2 x # \sin 2x
\sin x + 1 # \sin(x+1)
\ln x + 1 # \ln(x+1)
\sin 2x \cos x # \sin (2x \cos x)
e^{x+1} # e^x+1
2^{n}+1 # 2^{n+1}
x! # x
(n+1)! # n+1!
\binom{n}{2} # \frac{n}{2}
\binom{n}{2} # \binom{2}{n}
\lfloor x/2 \rfloor # x/2
|x-5|<2 # x>3
|x-5|=2 # 3
|x-4|\le 1 # x\ge 3
|2x-9|>1 # x<4
|x+6|<1 # x<-5
|x-10| # 10-x
|t-20| # 20-t
|2x-15| # 15-2x
\sqrt{(x-7)^2} # 7-x
\max(x,10) # 10
\max(n,3) # n
\min(x,100) # x
\lfloor x/7\rfloor # \lfloor x/8\rfloor
\lfloor n/100\rfloor # 0
|n-100| # 100-n
\gcd(n,11) # \gcd(n,13)
\gcd(n,10007) # 1
\sqrt{\frac{1}{(x-7)^2}} # \frac{1}{7-x}
\sqrt{4(x-7)^2} # 14-2x
|x-10|=y # y=10-x
\min(n,10^6) # n
|x-10^{15}| # 10^{15}-x
|x-y| # x-y
\frac{|x-9|}{x-9} # -1
f^{-1}(x) # 1/f(x)
f^{-1}(2) # f(2)
g(f(x)) # f(g(x))
f(x) # g(x)
f(x) # f(y)
f(x) # fx
\frac{d}{dx} f # \frac{f}{x}
\frac{\partial f}{\partial x} # \frac{\partial f}{\partial y}
\vec{AB} # AB
|AB| # AB
[2] # (2,2)
\{(1,2)\} # \{(2,1)\}
\{1,2\} \times \{3\} # \{1,2\}
(1,2) \cup (2,3) # (1,3)
[1,2] \cup [3,4] # [1,4]
x > 1, y > 2 # x > 2, y > 1
x \ge 1 \text{ and } y \ge 2 # x \ge 2 \text{ and } y \ge 1
x = 1 \text{ and } y = 2 # x = 2 \text{ and } y = 1
1 < x # x < 1
-1 < -x # x > 1
x^2 > 4 # x > 2
x^2 < 4 # x < 2
\text{max} = 5 # \text{max} = 6
5_{10} # 5_8
10_{2} # 10
FF_{16} # 255
0x1F # 31
1e3 # 1e-3
1E+3 # 1E-3
1.0e5 # 1.0e50
2.5 \times 10^{3} # 2.5 \times 10^{-3}
10^{-6} # 10^{6}
1,5 # 1.5
1.5, 2 # 1, 5.2
1;2 # 2;3
π # 3.14159
2π # 2
π/2 # 2π
√2 # 2
2√3 # 3√2
∛8 # 8 # √8
x² # x³ # x2
x₁ # x₂
½ # 2
∞ # -∞ # 8
∅ # 0
≈5 # 6
≥5 # 5 # ≤5
<5 # 5 # >5
> 5 # 5
= 5 # 6
!5 # 5
5? # 6?
#5 # #6
(a) # (b)
a) # b)
i # ii # iii
(i) # (ii)
\alpha # a # \beta
\epsilon # \varepsilon_0
\Delta x # x
dx # dy
\hbar # h
k_B T # k T
m c^2 # m c
E = mc^2 # E = mc
\text{kg} # \text{g}
5 \text{ kg} # 6 \text{ kg}
5 \text{ seconds ago} # 5
5 \text{ from the left} # 5 \text{ from the right}
5 \text{ (left)} # 5 \text{ (right)}
5 to the left # 5
+5 # -5
loss of 5 # 5 # gain of 5
minus 5 # 5
negative 5 # 5
five # 5
five apples # 5
twenty five # 20, 5
-5 degrees # 5 degrees
5 degrees north # 5 degrees south
5 km east # 5 km west
30^\circ N # 30^\circ S
2:1 # 2
2/1 # 1/2
2 # 2, 2
no # yes
not 5 # 5
all except 5 # 5
x \ne 5 # 5
x \neq 5 # x \neq 6
none # 0
zero # 1
null # 0
N/A # 0
nan # 0
True # 1
[1, 2] # [2, 1]
[1,2,3] # [1,3,2]
1-2 # 2-1
1 - 2 # -3
2024 # 2025
January 5 # January 6 # 5
5 January # 5 February # 5
Jan 5, 2020 # Jan 5, 2021
Monday # Tuesday
5:00 # 17:00
5 o'clock # 5
Paris # London
H # T
HH # HT # TT
HT # TH
""",
}
NAMES = [
    (r"\overrightarrow{CD} = (3,4)", "(3,4)"),
    (r"\vec{u} = (3,4)", "(3,4)"),
    ("P(B|A) = \\frac14", r"\frac14"),
    ("|MN| = 9", "9"),
    (r"\text{Volume} = 24", "24"),
    (r"\text{Total cost} = \$24", "24"),
    ("Perimeter = 24", "24"),
    ("g^{-1}(x) = 2x", "2x"),
    (r"\angle ABC = 40^\circ", "40"),
    (r"m\angle B = 40^\circ", "40"),
    (r"S_{\triangle PQR} = 6", "6"),
    (r"\frac{dy}{dx} = 2x", "2x"),
    (r"f'(x) = 2x", "2x"),
    (r"\lim_{x \to 0} f(x) = 3", "3"),
    (r"\tan \theta = \frac34", r"\frac34"),
    (r"V_{\text{max}} = 8", "8"),
    ("[ABC] = 8", "8"),
    ("n(A \\cup B) = 8", "8"),
    ("(a, b) = (1, 2)", "(1,2)"),
    ("x + y + z = 6", "6 = x + y + z"),
]


SAME = [
    (kind, first, other)
    for kind, text in KINDS.items()
    for line in text.strip().splitlines()
    if " # " not in line
    for first, *others in [line.split(" == ")]
    for other in others
]
DIFFERENT = [
    (kind, *pair)
    for kind, text in KINDS.items()
    for line in text.strip().splitlines()
    if " # " in line
    for pair in itertools.combinations(dict.fromkeys(line.split(" # ")), 2)
]


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_of_one_answer_are_equal(kind: str) -> None:
    wrong = [(a, b) for each, a, b in SAME if each == kind and not answers_equal(a, b)]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_different_answers_are_never_merged(kind: str) -> None:
    wrong = [(a, b) for each, a, b in DIFFERENT if each == kind and answers_equal(a, b)]
    assert wrong == []


@pytest.mark.parametrize(("statement", "answer"), NAMES)
def test_a_name_on_the_left_is_dropped(statement: str, answer: str) -> None:
    assert answers_equal(statement, answer)
